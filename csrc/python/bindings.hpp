// What the bind_*.cpp files share: one register function per topic, and the bridge from a Python call to the core.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/types.hpp"
#include "python/gil.hpp"

namespace mpfast::python {

namespace py = pybind11;

// A matrix handed in from Python: the view the core reads, and the object that keeps its memory alive.
struct Matrix {
  MatrixView view;
  Reference owner;
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
