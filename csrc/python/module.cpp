#include "core/abandonable.hpp"
#include "cpu/machine/workers.hpp"
#include "linalg/lapack.hpp"
#include "python/bindings.hpp"

PYBIND11_MODULE(_core, m) {
  using namespace mpfast::python;
  m.doc() = "Native core of mpfast. Private: use the functions of the package.";
  mpfast::linalg::set_up_blas();
  mpfast::forget_calls_at_fork();
  mpfast::cpu::end_workers_at_fork();
  find_main_thread();
  register_matrix(m);
  register_info(m);
  register_products(m);
  register_decoding(m);
  register_exact(m);
  register_lanczos(m);
  register_masks(m);
  register_reconstruct(m);
}
