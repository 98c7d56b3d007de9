// What both modules check about arguments. Whatever Python hands in, a binding answers with an exception: what is not
// checked here or by pybind11 would be read beyond its end.
#pragma once

#include <pybind11/numpy.h>

#include <cmath>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/types.hpp"

namespace mpfast::python {

// Sequences of matrices: pybind11 makes a null pointer of None where an element may be one.
template <class Matrix>
using MatrixList = std::vector<std::reference_wrapper<const Matrix>>;

template <class W>
void check_not_empty(const W& w) {
  if (w.rows < 1 || w.cols < 1) throw std::invalid_argument("a matrix is empty");
}

// The factor of a matrix's magnitudes.
inline void check_scale(double scale) {
  if (!(scale > 0 && std::isfinite(scale))) throw std::invalid_argument("scales must be positive and finite");
}

// m x m second moments for every group of m columns, and the weight of the prior.
inline void check_moments(const pybind11::array_t<double, pybind11::array::c_style>& moments, index_t cols, int m,
                          double prior) {
  if (m < 1 || cols % m != 0) throw std::invalid_argument("m must divide the number of columns");
  if (moments.size() != cols * m) throw std::invalid_argument("one m x m moment is needed for each group of columns");
  for (index_t i = 0; i < cols * m; ++i) {
    if (!std::isfinite(moments.data()[i])) throw std::invalid_argument("moments must be finite");
  }
  if (!(prior >= 0 && std::isfinite(prior))) throw std::invalid_argument("prior must be finite and not negative");
}

// A view of a 2-D array as entries of `type`. The array may hold the raw bits of a type that NumPy lacks: only its
// memory and its strides are used.
inline MatrixView view_of(const pybind11::array& array, DType type, const std::string& name) {
  const auto bytes = static_cast<index_t>(size_of(type));
  if (array.ndim() != 2) throw std::invalid_argument("expected a 2-D array");
  if (array.itemsize() != bytes) throw std::invalid_argument("the array's item size is not that of " + name);
  if (std::string("fuiV").find(array.dtype().kind()) == std::string::npos) {
    throw std::invalid_argument("the array does not hold numbers");
  }
  const char order = array.dtype().byteorder();
  if (order != '=' && order != '|') throw std::invalid_argument("the array has another byte order than this machine");
  if (reinterpret_cast<std::uintptr_t>(array.data()) % static_cast<std::uintptr_t>(bytes) != 0) {
    throw std::invalid_argument("the array's entries do not lie at multiples of their size");
  }
  if (array.strides(0) % bytes != 0 || array.strides(1) % bytes != 0) {
    throw std::invalid_argument("strides must be whole multiples of the item size");
  }
  return {array.data(), type, array.shape(0), array.shape(1), array.strides(0) / bytes, array.strides(1) / bytes};
}

}  // namespace mpfast::python
