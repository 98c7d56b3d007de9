// Phase 1 of a product: a few whole rows times a group of vectors.
#pragma once

#include "cpu/products/register_tiles.hpp"

namespace mpfast::cpu::MPFAST_ISA {

namespace {

// Pairs of registers in one partial sum of a dot product: short enough for long rows to lose no accuracy, and for the
// piece of X to stay in a first-level cache of 32 kB; with wide groups beside the rows of W that stream through it.
template <int G>
constexpr index_t kDotRun = (G > kGroupWidth ? 128 : 256) / G;
template <int G>
constexpr int kDotRows = G < 3 ? 4 : (G <= kGroupWidth && kManyRegisters ? 6 : 3);

// A register of partial sums for each of R G products w[i] . x[g], to be added at totals[(i G + g) lanes], for R rows
// and `pairs` pairs of registers. Each register of columns costs R + G loads and R G FMAs, in R G independent chains (2
// R of them for one vector).
template <class Real, class Storage, int R, int G>
[[gnu::always_inline]] inline void dot_tile(const Storage* w, index_t row_stride, index_t pairs, const Real* x,
                                            Real* totals) {
  constexpr int L = kLanes<Real>;
  constexpr int kChains = G == 1 ? 2 : 1;
  Vec<Real> a[R][G][kChains] = {};
  for (index_t p = 0; p < pairs; ++p, w += kPair<Real>, x += kPair<Real> * G) {
    unroll<2>([&]<int h>() {
      Vec<Real> rows[R];
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) rows[i] = in_register(load_half<Real, h>(w + i * row_stride));
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) {
        const Vec<Real> xv = reused(load<Real>(x + (h * G + g) * L));
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) a[i][g][h % kChains] = fma(rows[i], xv, a[i][g][h % kChains]);
      }
    });
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      Real* const total = totals + (i * G + g) * L;
      store(total, load<Real>(total) + (kChains == 2 ? a[i][g][0] + a[i][g][1] : a[i][g][0]));
    }
  }
}

// Every row is multiplied by one piece of X, which stays in the first-level cache, before the next piece is read.
template <class Real, class Storage, int G>
void add_group_dots(const Panel& panel, const Real* x, Real* totals) {
  constexpr int R = kDotRows<G>;
  constexpr index_t kRowTotals = G * kLanes<Real>;
  const Columns<Real, Storage, kMaxPanelRows> columns(static_cast<const Storage*>(panel.data), panel.row_stride,
                                                      panel.rows, panel.cols);
  for (const auto& span : columns.spans) {
    for (index_t start = 0; start < span.pairs; start += kDotRun<G>) {
      const index_t left = span.pairs - start;
      const index_t pairs = left < kDotRun<G> ? left : kDotRun<G>;
      const Storage* w = span.data + start * kPair<Real>;
      index_t i = 0;
      for (; i + R <= panel.rows; i += R) {
        dot_tile<Real, Storage, R, G>(w + i * span.row_stride, span.row_stride, pairs, x, totals + i * kRowTotals);
      }
      for (; i < panel.rows; ++i) {
        dot_tile<Real, Storage, 1, G>(w + i * span.row_stride, span.row_stride, pairs, x, totals + i * kRowTotals);
      }
      x += pairs * kPair<Real> * G;
    }
  }
}

template <class Real>
void add_up(index_t count, const Real* totals, Real alpha, Real beta, Real* y) {
  for (index_t k = 0; k < count; ++k) y[k] = add_lanes(load<Real>(totals + k * kLanes<Real>)) * alpha * beta;
}

template <class Real, class Storage>
void add_dots(const Panel& panel, index_t width, const Real* x, Real* totals) {
  with_width<kWideGroup>(width, [&]<int G>() { add_group_dots<Real, Storage, G>(panel, x, totals); });
}

}  // namespace

}  // namespace mpfast::cpu::MPFAST_ISA
