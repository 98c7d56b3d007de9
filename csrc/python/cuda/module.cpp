#include "core/abandonable.hpp"
#include "linalg/lapack.hpp"
#include "python/cuda/bindings.hpp"

PYBIND11_MODULE(_cuda, m) {
  using namespace mpfast::python;
  m.doc() = "CUDA backend of mpfast. Private: use the functions of the package.";
  mpfast::linalg::set_up_blas();
  mpfast::forget_calls_at_fork();
  find_main_thread();
  register_cuda_devices(m);
  register_cuda_products(m);
  register_cuda_lanczos(m);
  register_cuda_masks(m);
  register_cuda_reconstruct(m);
}
