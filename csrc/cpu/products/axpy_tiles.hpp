// Phase 2 of a product: the rows of a panel, each times its factors, added to columns of a group.
#pragma once

#include "cpu/products/register_tiles.hpp"

namespace mpfast::cpu::MPFAST_ISA {

namespace {

// With squares each pair takes four registers more.
template <int G, bool kSquares>
constexpr int kStripPairs = G >= 3 || (kSquares && !kManyRegisters) ? 1 : (G == 2 || kSquares ? 2 : 4);
// Whether phase 2 asks for the rows of the next panel. With eight vectors in double precision the cache has no room for
// them: float64 takes 2 to 7 % more time with it, 32-bit products 3 to 14 % less. With few registers entries that need
// widening take 5 % more, others up to 14 % less.
template <class Real, class Storage, int G>
constexpr bool kPrefetches =
    kManyRegisters ? G <= kGroupWidth || sizeof(Real) == sizeof(float) : sizeof(Storage) == sizeof(Real);

// Where the squares of a panel's entries go: those of its rows to `row_runs`, those of its columns to `cols`.
template <class Real>
struct PanelSquares {
  Vec<Real>* row_runs;
  double* cols;
};

// z[:][g] += sum_i w[i][:] y[i][g] for P pairs of registers of columns, with the squares of w: each row costs 2 P + G
// loads and 2 P G FMAs. With squares these are 2 P products, which are added to both sums by units that do not take
// FMAs where the processor has such: 2 P FMAs for either sum would cost twice as much.
template <class Real, class Storage, int P, int G, bool kSquares>
[[gnu::always_inline]] inline void axpy_strip(const Storage* w, index_t row_stride, index_t rows, const Real* y,
                                              Real* z, const PanelSquares<Real>& squares) {
  constexpr int L = kLanes<Real>;
  Vec<Real> a[2 * P * G];
  Vec<Real> cols[2 * P] = {};
#pragma GCC unroll 16
  for (int k = 0; k < 2 * P * G; ++k) a[k] = load<Real>(z + k * L);
  for (index_t i = 0; i < rows; ++i, w += row_stride, y += G) {
    Vec<Real> strip[2 * P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      if constexpr (kPrefetches<Real, Storage, G>) __builtin_prefetch(w + rows * row_stride + p * kPair<Real>, 0, 2);
      strip[2 * p] = load_half<Real, 0>(w + p * kPair<Real>);
      strip[2 * p + 1] = load_half<Real, 1>(w + p * kPair<Real>);
    }
    if constexpr (kSquares) {
      Vec<Real> row{};
#pragma GCC unroll 4
      for (int s = 0; s < 2 * P; ++s) {
        const Vec<Real> square = in_register(strip[s] * strip[s]);
        cols[s] += square;
        row = s == 0 ? square : row + square;
      }
      squares.row_runs[i] += row;
    }
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) {
      const Vec<Real> factor = reused(broadcast(y[g]));
#pragma GCC unroll 16
      for (int s = 0; s < 2 * P; ++s) a[s * G + g] = fma(strip[s], factor, a[s * G + g]);
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < 2 * P * G; ++k) store(z + k * L, a[k]);
  if constexpr (kSquares) {
#pragma GCC unroll 4
    for (int s = 0; s < 2 * P; ++s) add_in_double(cols[s], squares.cols + s * L);
  }
}

// Puts the rows' squares that were added in Real into double now and then.
template <class Real, index_t kMost>
class RowSquares {
 public:
  explicit RowSquares(index_t rows) : rows_(rows) {}

  Vec<Real>* runs() { return runs_; }

  // After `count` registers of every row.
  void added(index_t count) {
    if ((added_ += count) >= kSquareRun) flush_all();
  }

  void add_to(double* rows) {
    flush_all();
    for (index_t i = 0; i < rows_; ++i) rows[i] += add_lanes(totals_[i]);
  }

 private:
  void flush_all() {
    for (index_t i = 0; i < rows_; ++i) flush(runs_[i], totals_[i]);
    added_ = 0;
  }

  index_t rows_;
  index_t added_ = 0;
  Vec<Real> runs_[kMost == 0 ? 1 : kMost] = {};
  Vec<double> totals_[kMost == 0 ? 1 : kMost] = {};
};

template <class Real, class Storage, int G, bool kSquares>
void axpy_group(const Panel& panel, const Real* y, Real* z, const Squares& squares) {
  constexpr int P = kStripPairs<G, kSquares>;
  const Columns<Real, Storage, kMaxPanelRows> columns(static_cast<const Storage*>(panel.data), panel.row_stride,
                                                      panel.rows, panel.cols);
  RowSquares<Real, kSquares ? kMaxPanelRows : 0> rows(panel.rows);
  PanelSquares<Real> added{rows.runs(), squares.cols};
  for (const auto& span : columns.spans) {
    const Storage* w = span.data;
    const auto take = [&]<int kPairs>() {
      axpy_strip<Real, Storage, kPairs, G, kSquares>(w, span.row_stride, panel.rows, y, z, added);
      w += kPairs * kPair<Real>;
      z += kPairs * kPair<Real> * G;
      if constexpr (kSquares) {
        added.cols += kPairs * kPair<Real>;
        rows.added(2 * kPairs);
      }
    };
    index_t p = 0;
    for (; p + P <= span.pairs; p += P) take.template operator()<P>();
    for (; p < span.pairs; ++p) take.template operator()<1>();
  }
  if constexpr (kSquares) rows.add_to(squares.rows);
}

template <class Real, class Storage, int G>
void axpy_either(const Panel& panel, const Real* y, Real* z, const Squares& squares) {
  if (!squares.wanted()) return axpy_group<Real, Storage, G, false>(panel, y, z, squares);
  axpy_group<Real, Storage, G, true>(panel, y, z, squares);
}

template <class Real, class Storage>
void axpy(const Panel& panel, index_t width, const Real* y, Real* z, const Squares& squares) {
  with_width<kWideGroup>(width, [&]<int G>() { axpy_either<Real, Storage, G>(panel, y, z, squares); });
}

}  // namespace

}  // namespace mpfast::cpu::MPFAST_ISA
