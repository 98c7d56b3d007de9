// Factors and energies of rows and columns as Python hands them over: a pair of arrays, or None.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "core/energies.hpp"
#include "core/factors.hpp"
#include "core/types.hpp"

namespace mpfast::python {

using FactorArray = pybind11::array_t<double, pybind11::array::c_style>;
using FactorArrays = std::optional<std::pair<FactorArray, FactorArray>>;

// A copy of what was handed over: a run outlives the call, and a product may let others change the arrays.
class OwnFactors {
 public:
  template <class W>
  OwnFactors(const FactorArrays& arrays, const W& w) {
    if (!arrays) return;
    rows_ = checked(arrays->first, w.rows);
    cols_ = checked(arrays->second, w.cols);
  }

  Factors view() const { return rows_.empty() ? Factors{} : Factors{rows_.data(), cols_.data()}; }

 private:
  static std::vector<double> checked(const FactorArray& array, index_t length) {
    if (array.ndim() != 1 || array.shape(0) != length) {
      throw std::invalid_argument("factors must be two 1-D arrays, of the rows and of the columns");
    }
    const auto fits = [](double factor) { return factor >= 0 && std::isfinite(factor); };
    if (!std::all_of(array.data(), array.data() + length, fits)) {
      throw std::invalid_argument("factors must be finite and not negative");
    }
    return {array.data(), array.data() + length};
  }

  std::vector<double> rows_;
  std::vector<double> cols_;
};

// Arrays to be filled.
using EnergyArrays = FactorArrays;

template <class W>
void check_energies(const EnergyArrays& arrays, const W& w) {
  if (!arrays) return;
  if (arrays->first.ndim() != 1 || arrays->second.ndim() != 1 || arrays->first.shape(0) != w.rows ||
      arrays->second.shape(0) != w.cols) {
    throw std::invalid_argument("energies must be two 1-D arrays, of the rows and of the columns");
  }
  if (!arrays->first.writeable() || !arrays->second.writeable()) {
    throw std::invalid_argument("energies must be writeable");
  }
}

inline void store_energies(const Energies& found, std::pair<FactorArray, FactorArray> arrays) {
  std::copy(found.rows.begin(), found.rows.end(), arrays.first.mutable_data());
  std::copy(found.cols.begin(), found.cols.end(), arrays.second.mutable_data());
}

inline pybind11::object energies_tuple(const Energies* energies) {
  if (energies == nullptr || energies->rows.empty()) return pybind11::none();
  const auto array = [](const std::vector<double>& values) {
    return pybind11::array_t<double>(static_cast<pybind11::ssize_t>(values.size()), values.data());
  };
  return pybind11::make_tuple(array(energies->rows), array(energies->cols));
}

}  // namespace mpfast::python
