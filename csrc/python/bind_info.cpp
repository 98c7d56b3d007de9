#include <utility>
#include <vector>

#include "cpu/machine/dispatch.hpp"
#include "cpu/machine/loop_log.hpp"
#include "cpu/machine/team.hpp"
#include "linalg/lapack.hpp"
#include "python/bindings.hpp"

namespace mpfast::python {

void register_info(py::module_& m) {
  m.def("isa", &cpu::active_isa_name, "Instruction set the kernels use on this machine.");
  m.def("blas", &linalg::blas_description, "Version and kernel of the bundled OpenBLAS.");
  m.def("begin_loop_log", &cpu::begin_loop_log, "Notes the loops of all calls from here on, for benchmarks.");
  m.def(
      "end_loop_log",
      [] {
        std::vector<std::pair<index_t, double>> loops;
        for (const cpu::Loop& loop : cpu::end_loop_log()) loops.emplace_back(loop.tasks, loop.seconds);
        return loops;
      },
      "Number of tasks and processor seconds of each loop since then.");
  m.def("default_threads", [] { return cpu::resolve_threads(0); }, "Number of threads used when none is asked for.");
}

}  // namespace mpfast::python
