// What products and spectra read: a matrix as it lies in memory, or one of codes, which are decoded piece by piece into
// a buffer of whoever reads them.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/coded_matrix.hpp"
#include "core/dtype.hpp"
#include "core/factors.hpp"
#include "core/scale.hpp"
#include "core/types.hpp"
#include "cpu/decoding/code_kernels.hpp"
#include "cpu/machine/dispatch.hpp"

namespace mpfast::cpu {

// The memory behind it must outlive it. Its own rows and columns are those of a part of the matrix, or of the transpose
// of one.
class Source {
 public:
  Source() = default;

  Source(const MatrixView& entries)
      : dtype(entries.dtype),
        rows(entries.rows),
        cols(entries.cols),
        data_(entries.data),
        row_stride_(entries.row_stride),
        col_stride_(entries.col_stride) {}

  // `type` holds every entry: what the matrix would be stored as.
  Source(const CodedMatrix& matrix, DType type) : dtype(type), rows(matrix.rows), cols(matrix.cols), coded_(matrix) {}

  DType dtype = DType::float32;
  index_t rows = 0;
  index_t cols = 0;

  bool is_coded() const { return coded_.codes != nullptr; }

  // As it lies in memory; not of codes.
  MatrixView entries() const { return {data_, dtype, rows, cols, row_stride_, col_stride_}; }

  // Of codes, whole rows of them: as they lie in memory.
  CodedMatrix codes() const {
    CodedMatrix found = coded_;
    found.rows = rows;
    found.codes += row_ * coded_.row_stride;
    found.scales += row_ * coded_.scale_stride;
    return found;
  }

  Source transposed() const {
    Source other = *this;
    std::swap(other.rows, other.cols);
    std::swap(other.row_, other.col_);
    std::swap(other.row_stride_, other.col_stride_);
    other.swapped_ = !swapped_;
    return other;
  }

  Source part(index_t row, index_t height, index_t col, index_t width) const {
    Source other = *this;
    other.rows = height;
    other.cols = width;
    other.row_ += row;
    other.col_ += col;
    if (!is_coded()) {
      const index_t offset = (row * row_stride_ + col * col_stride_) * static_cast<index_t>(size_of(dtype));
      other.data_ = static_cast<const char*>(data_) + offset;
    }
    return other;
  }

  // Whether entries of a row follow one another in memory, or as codes.
  bool has_contiguous_rows() const { return is_coded() ? !swapped_ : col_stride_ == 1 || cols == 1; }

  // Whether entries of a row lie at least as close together as those of a column.
  bool has_dense_rows() const {
    const auto distance = [](index_t stride) { return stride < 0 ? -stride : stride; };
    return is_coded() ? !swapped_ : distance(col_stride_) <= distance(row_stride_);
  }

  // Of codes: target[i * target_stride + j] = entry (i, j); see Decode. Rows must be contiguous.
  template <class Real>
  void decode(Real* target, index_t target_stride) const {
    const auto kernel = for_active_isa([&]<class Isa>() { return decode_kernel<Isa, Real>(coded_.type); });
    kernel(coded_, {row_, rows, col_, cols}, target, target_stride);
  }

  // to[j] = scale times entry (row, col + j) for j < count. Says whether all entries are finite; where they are not,
  // the numbers mean nothing.
  bool widen(index_t row, index_t col, index_t count, double scale, double* to) const {
    if (is_coded()) return widen_codes(row, col, count, scale, to);
    return dispatch(dtype, [&]<DType each>() {
      using Bits = typename Entry<each>::Bits;
      constexpr Bits kExponent = Entry<each>::kExponent;
      const auto* from = static_cast<const Bits*>(data_) + row * row_stride_ + col * col_stride_;
      Bits nonfinite = 0;
      const auto step = [&](Bits bits, index_t j) {
        nonfinite = static_cast<Bits>(nonfinite | static_cast<Bits>((bits & kExponent) == kExponent));
        to[j] = Entry<each>::widen(bits) * scale;
      };
      if (col_stride_ == 1) {
        for (index_t j = 0; j < count; ++j) step(from[j], j);
      } else {
        for (index_t j = 0; j < count; ++j) step(from[j * col_stride_], j);
      }
      return nonfinite == 0;
    });
  }

  // visit(i, j) for every entry that is infinite or no number.
  template <class Visit>
  void for_each_nonfinite(const Visit& visit) const {
    if (!is_coded()) {
      return dispatch(dtype, [&]<DType each>() {
        using Bits = typename Entry<each>::Bits;
        const auto* data = static_cast<const Bits*>(data_);
        for (index_t i = 0; i < rows; ++i) {
          for (index_t j = 0; j < cols; ++j) {
            const Bits bits = data[i * row_stride_ + j * col_stride_];
            if ((bits & Entry<each>::kExponent) == Entry<each>::kExponent) visit(i, j);
          }
        }
      });
    }
    constexpr index_t kRun = 512;
    double run[kRun];
    const Source lines = swapped_ ? transposed() : *this;
    for (index_t i = 0; i < lines.rows; ++i) {
      for (index_t first = 0; first < lines.cols; first += kRun) {
        const index_t count = std::min(kRun, lines.cols - first);
        if (lines.widen(i, first, count, 1, run)) continue;
        for (index_t k = 0; k < count; ++k) {
          if (std::isfinite(run[k])) continue;
          swapped_ ? visit(first + k, i) : visit(i, first + k);
        }
      }
    }
  }

 private:
  bool widen_codes(index_t row, index_t col, index_t count, double scale, double* to) const {
    const Source run = part(row, 1, col, count);
    // A column of codes is decoded row by row, one entry behind the other.
    swapped_ ? run.transposed().decode(to, 1) : run.decode(to, count);
    bool finite = true;
    for (index_t j = 0; j < count; ++j) {
      finite = finite && std::isfinite(to[j]);
      to[j] *= scale;
    }
    return finite;
  }

  const void* data_ = nullptr;
  index_t row_stride_ = 0;  // in entries
  index_t col_stride_ = 0;
  CodedMatrix coded_;
  bool swapped_ = false;  // of codes: rows are columns of the matrix
  index_t row_ = 0;       // of the first entry
  index_t col_ = 0;
};

inline double entries_of(const Source& w) { return static_cast<double>(w.rows) * static_cast<double>(w.cols); }

// As of a matrix in memory, see core/scale.hpp.
inline int scale_exponent(const Source& w, const Factors& factors) {
  if (!w.is_coded()) return mpfast::scale_exponent(w.entries(), factors);
  return mpfast::scale_exponent(w, factors, [&](index_t i, index_t j) {
    double entry = 0;
    return w.widen(i, j, 1, 1, &entry) ? entry : 0.0;
  });
}

}  // namespace mpfast::cpu
