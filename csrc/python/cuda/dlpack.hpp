// The part of DLPack's C interface that a consumer of tensors needs (dmlc/dlpack, version 0.8: capsules "dltensor").
#pragma once

#include <cstdint>

#include "core/dtype.hpp"

namespace mpfast::python::dlpack {

struct Device {
  std::int32_t type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

constexpr std::uint8_t kFloat = 2;
constexpr std::uint8_t kBfloat = 4;

constexpr std::uint8_t code_of(DType dtype) {
  switch (dtype) {
    case DType::float64:
    case DType::float32:
    case DType::float16:
      return kFloat;
    case DType::bfloat16:
      return kBfloat;
  }
  __builtin_unreachable();
}

constexpr bool is(const DataType& type, DType dtype) {
  return type.code == code_of(dtype) && type.bits == 8 * size_of(dtype) && type.lanes == 1;
}

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in entries; null: row-major
  std::uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);
};

constexpr const char* kCapsule = "dltensor";
constexpr const char* kUsedCapsule = "used_dltensor";

}  // namespace mpfast::python::dlpack
