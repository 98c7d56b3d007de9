#include "cpu/machine/dispatch.hpp"
#include "cpu/machine/team.hpp"
#include "linalg/lapack.hpp"
#include "python/bindings.hpp"

namespace mpfast::python {

void register_info(py::module_& m) {
  m.def("isa", &cpu::active_isa_name, "Instruction set the kernels use on this machine.");
  m.def("blas", &linalg::blas_description, "Version and kernel of the bundled OpenBLAS.");
  m.def("default_threads", [] { return cpu::resolve_threads(0); }, "Number of threads used when none is asked for.");
}

}  // namespace mpfast::python
