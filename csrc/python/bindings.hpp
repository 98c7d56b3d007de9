// What the bind_*.cpp files share: one register function per topic, and the bridge from a Python call to the core.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "core/types.hpp"
#include "cpu/decoding/source.hpp"
#include "python/gil.hpp"

namespace mpfast::python {

namespace py = pybind11;

// A matrix handed in from Python: what the core reads, and the object that keeps its memory alive.
struct Matrix {
  cpu::Source source;
  Reference owner;

  // For whatever does not read codes.
  MatrixView view() const {
    if (source.is_coded()) throw std::invalid_argument("a matrix of codes has no entries in memory: decode it first");
    return source.entries();
  }
};

void register_decoding(py::module_& m);
void register_exact(py::module_& m);
void register_info(py::module_& m);
void register_lanczos(py::module_& m);
void register_masks(py::module_& m);
void register_matrix(py::module_& m);
void register_products(py::module_& m);
void register_reconstruct(py::module_& m);

}  // namespace mpfast::python
