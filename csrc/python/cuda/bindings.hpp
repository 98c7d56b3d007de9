// What the files of the module _cuda share. It is built where nvcc is, and for tests with the emulation of
// tests/emulation in the place of a device.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/types.hpp"
#include "cuda/machine/runtime.hpp"
#include "python/gil.hpp"

namespace mpfast::python {

namespace py = pybind11;

// A matrix in device memory: the view kernels read, the stream on which it is ready, and what keeps it alive.
struct DeviceMatrix {
  MatrixView view;
  cuda::Stream stream;
  Reference owner;
};

void register_cuda_devices(py::module_& m);
void register_cuda_products(py::module_& m);
void register_cuda_lanczos(py::module_& m);
void register_cuda_masks(py::module_& m);
void register_cuda_reconstruct(py::module_& m);

}  // namespace mpfast::python
