// How the products with W (products.cpp) are cut: which entries make a panel, which panels make a task, and what a
// worker needs for one.
#pragma once

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "core/buffer.hpp"
#include "core/energies.hpp"
#include "core/factors.hpp"
#include "core/scale.hpp"
#include "core/types.hpp"
#include "cpu/machine/dispatch.hpp"
#include "cpu/products/energy_pass.hpp"
#include "cpu/products/product_kernels.hpp"
#include "cpu/products/product_vectors.hpp"
#include "linalg/backend.hpp"

namespace mpfast::cpu {

// How the work is cut. Nothing here depends on the machine or on the number of threads, so the results do not either.
// The taller a panel, the more rows share one reading of X and Z. Three quarters of the smallest second-level cache
// that is common (512 kB) leave room for the pieces of X and Z at work.
constexpr index_t kPanelBytes = index_t{384} << 10;
constexpr index_t kPanelRowStep = 6;                // a multiple of the rows of all register tiles but the narrowest
constexpr index_t kAxpyRows = 8;                    // rows added to a piece of Z at a time in a second pass
constexpr index_t kChunkRows = 128;                 // adding its partial result costs as much as about 8 rows
constexpr index_t kMaxChunkRows = 4096;             // rows added up one after the other in single precision
constexpr index_t kMinTask = index_t{1} << 18;      // entries
constexpr index_t kMaxTask = index_t{1} << 22;      // entries (32 vectors: about 10 ms)
constexpr index_t kColumnBlock = index_t{1} << 15;  // columns per task where the columns are shared out

template <class Real>
const ProductKernels<Real>& kernels_for(DType storage) {
  const auto* kernels = for_active_isa([&]<class Isa>() { return product_kernels<Isa, Real>(storage); });
  if (kernels == nullptr) {
    throw std::invalid_argument("float64 storage needs double precision vectors, got single precision ones");
  }
  return *kernels;
}

inline MatrixView part(const MatrixView& w, index_t row, index_t rows, index_t col, index_t cols) {
  const index_t offset = (row * w.row_stride + col * w.col_stride) * static_cast<index_t>(size_of(w.dtype));
  return {static_cast<const char*>(w.data) + offset, w.dtype, rows, cols, w.row_stride, w.col_stride};
}

inline bool has_contiguous_rows(const MatrixView& w) { return w.col_stride == 1 || w.cols == 1; }

template <class Real>
void check(const MatrixView& w, index_t width) {
  if (w.rows < 1 || w.cols < 1) throw std::invalid_argument("the matrix is empty");
  if (width < 1) throw std::invalid_argument("the block of vectors is empty");
  kernels_for<Real>(w.dtype);
}

// A product with B in progress: B, its factors, the precision and the scale.
template <class Real>
struct Product {
  MatrixView b;
  bool swapped;  // b is W^T
  Factors factors;
  Scale<Real> scale;
  index_t width;

  Product transposed() const { return {b.transposed(), !swapped, factors.transposed(), scale, width}; }

  // Those of the rows from `row` on, or null.
  const double* row_factors(index_t row) const { return factors.given() ? factors.rows + row : nullptr; }

  // Where the pass adds the energies of B; `learned`, of W, is null where nobody asks.
  EnergyTarget target(Energies* learned) const {
    if (learned == nullptr) return {};
    auto* const rows = learned->rows.data();
    auto* const cols = learned->cols.data();
    return {sums_squares(), scale.whole, factors, swapped ? cols : rows, swapped ? rows : cols};
  }

  // Whether the kernels add up squares while they multiply: unless factors, or entries far from one, leave these too
  // little room.
  bool sums_squares() const {
    constexpr double kFar = 0x1p40;
    return scale.whole <= kFar && scale.whole >= 1 / kFar && !factors.given();
  }

  // The kernels take contiguous rows. Others are packed first, and thereby widened.
  bool packs() const { return !has_contiguous_rows(b); }
  DType panel_dtype() const { return packs() ? kDTypeOf<Real> : b.dtype; }
  const ProductKernels<Real>& kernels() const { return kernels_for<Real>(panel_dtype()); }
};

// Part of B: rows [row, row + rows), columns [col, col + cols).
struct Piece {
  index_t row = 0;
  index_t rows = 0;
  index_t col = 0;
  index_t cols = 0;
};

// What one worker needs: y = panel X for a group of vectors, and a packed panel.
template <class Real>
struct Workspace {
  Buffer<Real> y;
  Buffer<Real> panel;
  Buffer<Real> runs;

  Real* factors() {
    if (y.get() == nullptr) y = Buffer<Real>(kMaxPanelRows, kMaxGroupWidth, "a panel's products");
    return y.get();
  }

  // Zeros, which a sweep leaves so.
  Real* column_runs(index_t length) {
    if (runs.get() == nullptr) {
      runs = Buffer<Real>(length, 1, "squares of columns");
      std::fill_n(runs.get(), length, Real{0});
    }
    return runs.get();
  }

  // A piece of b, packed when the rows of b are not contiguous. The buffer is made for `most_rows` and `most_cols`,
  // which no piece of the product exceeds: the first piece that a worker takes may be the narrow one at the end.
  // Whether a piece is packed follows from b, as the choice of kernels does: a piece of one column has contiguous rows,
  // and must be widened all the same.
  Panel panel_of(const Product<Real>& product, const Piece& piece, index_t most_rows, index_t most_cols) {
    const MatrixView view = part(product.b, piece.row, piece.rows, piece.col, piece.cols);
    if (!product.packs()) return {view.data, view.row_stride, view.rows, view.cols};
    const index_t stride = padded_stride(most_cols);
    if (panel.get() == nullptr) panel = Buffer<Real>(most_rows, stride, "a packed panel");
    kernels_for<Real>(view.dtype)
        .pack({view.data, view.row_stride, view.col_stride, view.rows, view.cols}, panel.get(), stride);
    return {panel.get(), stride, view.rows, view.cols};
  }

 private:
  // An odd number of cache lines, so that rows spread over all cache sets.
  static index_t padded_stride(index_t cols) {
    constexpr index_t kLine = 64 / static_cast<index_t>(sizeof(Real));
    return (ceil_div(cols, kLine) | 1) * kLine;
  }
};

// How the rows of B are cut. A function of shape and storage alone.
struct RowBlocks {
  index_t panel = 0;
  index_t chunk = 0;
  index_t chunks = 0;
};

inline RowBlocks cut_rows(index_t rows, index_t cols, index_t entry_bytes) {
  const index_t fitting = kPanelBytes / (cols * entry_bytes) / kPanelRowStep * kPanelRowStep;
  const index_t panel = std::clamp(fitting, kPanelRowStep, kMaxPanelRows);
  const index_t wanted = std::clamp(ceil_div(kMinTask, cols), kChunkRows, kMaxChunkRows);
  const index_t chunk = std::clamp(wanted, panel, std::max(panel, kMaxTask / cols));
  const index_t whole_panels = round_up(chunk, panel);
  return {panel, whole_panels, ceil_div(rows, whole_panels)};
}

}  // namespace mpfast::cpu
