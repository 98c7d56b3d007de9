// Codes and their scales as Python hands them over.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

#include "core/coded_matrix.hpp"
#include "core/types.hpp"

namespace mpfast::python {

// The name of their type, codes (rows, bytes), scales (rows, blocks), and entries of a block.
using CodeArrays = std::tuple<std::string, pybind11::array_t<std::uint8_t, 0>, pybind11::array_t<float, 0>, index_t>;

inline Code parse_code(const std::string& name) {
  for (const Code code : kCodes) {
    if (name == code_name(code)) return code;
  }
  throw std::invalid_argument("there are no codes called " + name);
}

// Of what `type` holds.
inline CodedMatrix coded_view(const CodeArrays& arrays, DType type) {
  const auto& [name, codes, scales, entries] = arrays;
  const Code code = parse_code(name);
  if (needs_double(type)) throw std::invalid_argument("codes stand for numbers of single precision");
  if (codes.ndim() != 2 || scales.ndim() != 2) throw std::invalid_argument("codes and scales must be 2-D arrays");
  if (entries < 1) throw std::invalid_argument("width must be at least 1");
  const index_t cols = codes.shape(1) * codes_in_a_byte(code);
  const index_t width = std::min(entries, std::max(cols, index_t{1}));
  if (scales.shape(0) != codes.shape(0) || scales.shape(1) != ceil_div(cols, width)) {
    throw std::invalid_argument("scales must have a row for each of codes, and a column for each block of a row");
  }
  constexpr index_t kScale = sizeof(float);
  const bool follow =
      (codes.strides(1) == 1 || codes.shape(1) < 2) && (scales.strides(1) == kScale || scales.shape(1) < 2);
  if (!follow) throw std::invalid_argument("codes and scales of a row must follow one another in memory");
  if (reinterpret_cast<std::uintptr_t>(scales.data()) % kScale != 0 || scales.strides(0) % kScale != 0) {
    throw std::invalid_argument("scales do not lie at multiples of their size");
  }
  return {.codes = codes.data(),
          .type = code,
          .rows = codes.shape(0),
          .cols = cols,
          .row_stride = codes.strides(0),
          .scales = scales.data(),
          .scale_stride = scales.strides(0) / kScale,
          .width = width};
}

}  // namespace mpfast::python
