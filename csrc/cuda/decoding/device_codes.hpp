// Codes and their scales on the way from the host to a device, as they are stored.
#pragma once

#include <cstdint>

#include "core/coded_matrix.hpp"
#include "core/types.hpp"
#include "cuda/decoding/source.hpp"
#include "cuda/machine/runtime.hpp"

namespace mpfast::cuda {

// Device memory for a matrix of codes, or for one part of it after the other.
class DeviceCodes {
 public:
  // Bytes on the device of a part of a matrix.
  static index_t bytes(const CodedMatrix& matrix, const Piece& piece);

  // Copies a part of a matrix in host memory, which begins with a whole byte of codes, in stream order. Rows must
  // follow one another without overlap, or have all the same scales (std::invalid_argument). `type` as of Source.
  Source sent(Stream stream, const CodedMatrix& matrix, const Piece& piece, DType type);

 private:
  DeviceBuffer<std::uint8_t> codes_;
  DeviceBuffer<float> scales_;
};

}  // namespace mpfast::cuda
