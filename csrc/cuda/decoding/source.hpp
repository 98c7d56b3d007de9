// What products read in device memory: a matrix of entries, or one of codes, which kernels decode on its way into
// shared memory.
#pragma once

#include <utility>

#include "core/coded_matrix.hpp"
#include "core/dtype.hpp"
#include "core/types.hpp"

namespace mpfast::cuda {

// Codes of a row begin at a multiple of so many bytes of device memory, and have room up to the next one: threads read
// them by the word, and may read what is behind the last one.
constexpr index_t kCodeAlignment = 16;

// Where codes and scales of B lie. `skipped`: entries of the first block of a row that come before the row's first,
// which those of a part of a matrix may have. `swapped`: rows of B are columns of the matrix.
struct Codes {
  CodedMatrix matrix;
  index_t skipped = 0;
  bool swapped = false;

  // Entry (i, j) of the matrix, as products see it.
  constexpr float number(index_t i, index_t j) const {
    const float scale = matrix.scales[i * matrix.scale_stride + (skipped + j) / matrix.width];
    return dispatch(matrix.type, [&]<Code code>() {
      constexpr int kBits = FormatOf<code>::kBits;
      const unsigned byte = matrix.codes[i * matrix.row_stride + j * kBits / 8];
      return value_of<code>(byte >> (j * kBits % 8) & ((1U << kBits) - 1)) * scale;
    });
  }
};

// The memory behind it must outlive it.
class Source {
 public:
  Source() = default;

  constexpr Source(const MatrixView& entries)
      : dtype(entries.dtype), rows(entries.rows), cols(entries.cols), entries_(entries) {}

  // `type` holds every entry: what the matrix would be stored as.
  constexpr Source(const CodedMatrix& matrix, DType type, index_t skipped = 0)
      : dtype(type), rows(matrix.rows), cols(matrix.cols), codes_{matrix, skipped, false} {}

  DType dtype = DType::float32;
  index_t rows = 0;
  index_t cols = 0;

  constexpr bool is_coded() const { return codes_.matrix.codes != nullptr; }

  // As it lies in memory; not of codes.
  constexpr const MatrixView& entries() const { return entries_; }

  constexpr const Codes& codes() const { return codes_; }

  // The type of its entries in shared memory.
  constexpr DType dtype_in_tiles() const { return is_coded() ? DType::float32 : dtype; }

  Source transposed() const {
    Source other = *this;
    std::swap(other.rows, other.cols);
    other.entries_ = entries_.transposed();
    other.codes_.swapped = !codes_.swapped;
    return other;
  }

 private:
  MatrixView entries_;
  Codes codes_;
};

}  // namespace mpfast::cuda
