// What the files of the module _cuda share. It is built where nvcc is, and for tests with the emulation of
// tests/emulation in the place of a device.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <variant>

#include "core/types.hpp"
#include "cuda/decoding/source.hpp"
#include "cuda/machine/runtime.hpp"
#include "python/code_arrays.hpp"
#include "python/gil.hpp"

namespace mpfast::python {

namespace py = pybind11;

// A matrix in device memory: what kernels read, the stream on which it is ready, and what keeps it alive.
struct DeviceMatrix {
  cuda::Source source;
  cuda::Stream stream;
  Reference owner;

  // For whatever does not read codes.
  const MatrixView& view() const {
    if (source.is_coded()) throw std::invalid_argument("a matrix of codes has no entries in memory: decode it first");
    return source.entries();
  }
};

// A matrix in host memory on its way to a device: entries or codes.
using HostMatrix = std::variant<py::array, CodeArrays>;

void register_cuda_devices(py::module_& m);
void register_cuda_products(py::module_& m);
void register_cuda_lanczos(py::module_& m);
void register_cuda_masks(py::module_& m);
void register_cuda_reconstruct(py::module_& m);

}  // namespace mpfast::python
