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
#include "cpu/decoding/source.hpp"
#include "cpu/machine/dispatch.hpp"
#include "cpu/products/coded_sweep.hpp"
#include "cpu/products/energy_pass.hpp"
#include "cpu/products/product_kernels.hpp"
#include "cpu/products/product_vectors.hpp"
#include "cpu/products/products.hpp"
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
// Where panels are packed for one reading alone, they are packed in pieces that stay in the first-level cache.
constexpr index_t kPieceColumns = 512;

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

template <class Real>
const ProductKernels<Real>& kernels_for(DType storage) {
  const auto* kernels = for_active_isa([&]<class Isa>() { return product_kernels<Isa, Real>(storage); });
  if (kernels == nullptr) {
    throw std::invalid_argument("float64 storage needs double precision vectors, got single precision ones");
  }
  return *kernels;
}

template <class Real>
void check(const Source& w, index_t width) {
  if (w.rows < 1 || w.cols < 1) throw std::invalid_argument("the matrix is empty");
  if (width < 1) throw std::invalid_argument("the block of vectors is empty");
  kernels_for<Real>(w.dtype);
}

// A product with B in progress: B, its factors, the precision and the scale.
template <class Real>
struct Product {
  Source b;
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

  // The kernels take contiguous rows of entries. Others, and codes, are packed first, and thereby widened.
  bool packs() const { return b.is_coded() || !b.has_contiguous_rows(); }
  DType panel_dtype() const { return packs() ? kDTypeOf<Real> : b.dtype; }
  RowBlocks row_blocks(index_t cols) const {
    return cut_rows(b.rows, cols, static_cast<index_t>(size_of(panel_dtype())));
  }
  const ProductKernels<Real>& kernels() const { return kernels_for<Real>(panel_dtype()); }
};

// Contiguous rows as they lie in memory.
inline Panel panel_at(const MatrixView& view) { return {view.data, view.row_stride, view.rows, view.cols}; }

// What one worker needs: y = panel X for all vectors, group by group, the registers that y is the sums of, a packed
// panel, and what a sweep asks for.
template <class Real>
struct Workspace {
  Buffer<Real> y;
  Buffer<Real> totals;
  Buffer<Real> panel;
  Buffer<Real> runs;
  Buffer<float> scales;

  Real* factors(index_t first_vector = 0) {
    if (y.get() == nullptr) y = Buffer<Real>(kMaxPanelRows, kMaxBlockWidth, "a panel's products");
    return y.get() + first_vector * kMaxPanelRows;
  }

  // Zeros, which a sweep leaves so.
  Real* column_runs(index_t length) {
    if (runs.get() == nullptr) {
      runs = Buffer<Real>(length, 1, "squares of columns");
      std::fill_n(runs.get(), length, Real{0});
    }
    return runs.get();
  }

  // Of a sweep over codes, for each of so many registers of columns.
  float* scales_of(index_t registers) {
    if (scales.get() == nullptr) scales = Buffer<float>(registers, kSweepScales, "the scales of a sweep");
    return scales.get();
  }

  Real* totals_of(index_t first_vector, index_t lanes) {
    if (totals.get() == nullptr) totals = Buffer<Real>(kMaxPanelRows * lanes, kMaxBlockWidth, "a panel's products");
    return totals.get() + first_vector * kMaxPanelRows * lanes;
  }

  // A piece of b, packed where the kernels cannot take it as it lies. The buffer is made for `most_rows` and
  // `most_cols`, which no piece of the product exceeds: the first piece that a worker takes may be the narrow one at
  // the end. Whether a piece is packed follows from b, as the choice of kernels does: a piece of one column has
  // contiguous rows, and must be widened all the same.
  // A packed piece begins at column `at` of the buffer.
  Panel panel_of(const Product<Real>& product, const Piece& piece, index_t most_rows, index_t most_cols,
                 index_t at = 0) {
    const Source source = product.b.part(piece.row, piece.rows, piece.col, piece.cols);
    if (!product.packs()) return panel_at(source.entries());
    const index_t stride = padded_stride(most_cols);
    if (panel.get() == nullptr) panel = Buffer<Real>(most_rows, stride, "a packed panel");
    if (source.is_coded()) {
      source.decode(panel.get() + at, stride);
    } else {
      const MatrixView view = source.entries();
      kernels_for<Real>(view.dtype)
          .pack({view.data, view.row_stride, view.col_stride, view.rows, view.cols}, panel.get() + at, stride);
    }
    return {panel.get() + at, stride, piece.rows, piece.cols};
  }

  // The panel of a piece that is packed already, in parts beside one another.
  Panel whole_panel(const Product<Real>& product, const Piece& piece, index_t most_cols) const {
    if (product.packs()) return {panel.get(), padded_stride(most_cols), piece.rows, piece.cols};
    return panel_at(product.b.part(piece.row, piece.rows, piece.col, piece.cols).entries());
  }

 private:
  // An odd number of cache lines, so that rows spread over all cache sets.
  static index_t padded_stride(index_t cols) {
    constexpr index_t kLine = 64 / static_cast<index_t>(sizeof(Real));
    return (ceil_div(cols, kLine) | 1) * kLine;
  }
};

}  // namespace mpfast::cpu
