// The names under which storage types go in and out of Python: NumPy's, and those of types that NumPy lacks.
#pragma once

#include <iterator>
#include <stdexcept>
#include <string>

#include "core/dtype.hpp"

namespace mpfast::python {

inline const char* dtype_name(DType dtype) {
  return dispatch(dtype, []<DType each>() { return Entry<each>::kName; });
}

// "float64, float32, float16 or bfloat16"
inline std::string all_dtype_names() {
  std::string names;
  for (const DType& dtype : kDTypes) {
    if (&dtype != std::begin(kDTypes)) names += &dtype == std::prev(std::end(kDTypes)) ? " or " : ", ";
    names += dtype_name(dtype);
  }
  return names;
}

inline DType parse_dtype(const std::string& name) {
  for (const DType dtype : kDTypes) {
    if (name == dtype_name(dtype)) return dtype;
  }
  throw std::invalid_argument("dtype must be " + all_dtype_names() + ", not " + name);
}

// The NumPy type that holds the entries: for those that NumPy lacks, their bits.
inline std::string numpy_name(DType dtype) {
  return dispatch(dtype, []<DType each>() -> std::string {
    if constexpr (Entry<each>::kInNumPy) return Entry<each>::kName;
    return "uint" + std::to_string(Entry<each>::kBits);
  });
}

}  // namespace mpfast::python
