// The names under which storage types go in and out of Python: NumPy's, and bfloat16.
#pragma once

#include <stdexcept>
#include <string>

#include "core/types.hpp"

namespace mpfast::python {

inline DType parse_dtype(const std::string& name) {
  if (name == "float64") return DType::float64;
  if (name == "float32") return DType::float32;
  if (name == "float16") return DType::float16;
  if (name == "bfloat16") return DType::bfloat16;
  throw std::invalid_argument("dtype must be float64, float32, float16 or bfloat16, not " + name);
}

inline const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return "float64";
    case DType::float32:
      return "float32";
    case DType::float16:
      return "float16";
    default:
      return "bfloat16";
  }
}

}  // namespace mpfast::python
