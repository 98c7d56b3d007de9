// Compiled once per instruction set (see CMakeLists.txt).
//
// Register tiles. Phase 1 (add_dots) multiplies a few whole rows by a group of vectors; phase 2 (axpy) adds the rows of
// a panel, each times its factors, to a pair of registers of columns of a group. For eight vectors a tile has 24
// independent chains of FMAs fed by 11 loads in phase 1, and 16 fed by 10 in phase 2; for four vectors and 16 registers
// it has 12 fed by 7, and 8 fed by 6. The wider the group, the less often W is read from the second-level cache.
//
// With up to four vectors memory is the limit. `sweep` then does both phases in one loop, phase 2 on the rows before
// those of phase 1, and asks for the rows after them, so that the memory bus hardly ever waits: for one to four vectors
// and 8192 x 8192 bfloat16 that takes 10 to 25 % less time.
#include "cpu/products/product_kernels.hpp"

#include "core/factors.hpp"
#include "cpu/machine/dispatch.hpp"
#include "cpu/machine/simd.hpp"

namespace mpfast::cpu::MPFAST_ISA {

namespace {

constexpr int kWideGroup = kManyRegisters ? kMaxGroupWidth : kGroupWidth;
// About how many squares are added up in single precision before their sum goes on in double.
constexpr index_t kSquareRun = 64;

template <class Real>
constexpr index_t kPair = 2 * kLanes<Real>;
// Pairs of registers in one partial sum of a dot product: short enough for long rows to lose no accuracy, and for the
// piece of X to stay in a first-level cache of 32 kB; with wide groups beside the rows of W that stream through it.
template <int G>
constexpr index_t kDotRun = (G > kGroupWidth ? 128 : 256) / G;
template <int G>
constexpr int kDotRows = G < 3 ? 4 : (G <= kGroupWidth && kManyRegisters ? 6 : 3);
// With squares each pair takes four registers more.
template <int G, bool kSquares>
constexpr int kStripPairs = G >= 3 || (kSquares && !kManyRegisters) ? 1 : (G == 2 || kSquares ? 2 : 4);
// With AVX-512, and entries that need no widening, the two phases one after the other are faster than a sweep: for 8192
// x 8192 float32 and four vectors they take 8.3 ms, a sweep 9.9 ms.
template <class Real, class Storage>
constexpr bool kSweeps = kVectorBytes < 64 || sizeof(Storage) < sizeof(Real);
// Whether phase 2 asks for the rows of the next panel. With eight vectors in double precision the cache has no room for
// them: float64 takes 2 to 7 % more time with it, 32-bit products 3 to 14 % less. With few registers entries that need
// widening take 5 % more, others up to 14 % less.
template <class Real, class Storage, int G>
constexpr bool kPrefetches =
    kManyRegisters ? G <= kGroupWidth || sizeof(Real) == sizeof(float) : sizeof(Storage) == sizeof(Real);
template <int G>
constexpr int kSweepRows = G >= 3 && !kManyRegisters ? 3 : 4;

// Columns in pairs of registers.
template <class Storage>
struct Span {
  const Storage* data = nullptr;
  index_t row_stride = 0;
  index_t pairs = 0;

  Span from(index_t row) const { return {data + row * row_stride, row_stride, pairs}; }
};

// The columns of a panel: whole pairs of registers stay where they lie; the columns left over are copied to `copies`
// and padded with zeros.
template <class Real, class Storage, index_t kRows>
class Columns {
 public:
  Columns(const Storage* data, index_t row_stride, index_t rows, index_t cols) {
    const index_t pairs = cols / kPair<Real>;
    const index_t rest = cols % kPair<Real>;
    spans[0] = {data, row_stride, pairs};
    if (rest == 0) return;
    for (index_t i = 0; i < rows; ++i) {
      for (index_t k = 0; k < kPair<Real>; ++k) {
        copies_[i * kPair<Real> + k] = k < rest ? data[i * row_stride + pairs * kPair<Real> + k] : Storage{};
      }
    }
    spans[1] = {copies_, kPair<Real>, 1};
  }

  Columns(const Columns&) = delete;
  Columns& operator=(const Columns&) = delete;

  Span<Storage> spans[2];

 private:
  Storage copies_[kRows * kPair<Real>];
};

[[gnu::always_inline]] inline void flush(Vec<float>& run, Vec<double>& total) {
  total += to_double<kLanes<double>>(low_half(run)) + to_double<kLanes<double>>(high_half(run));
  run = Vec<float>{};
}

[[gnu::always_inline]] inline void flush(Vec<double>& run, Vec<double>& total) {
  total += run;
  run = Vec<double>{};
}

// sums[k] += lane k of `run`.
[[gnu::always_inline]] inline void add_in_double(const Vec<float>& run, double* sums) {
  constexpr int L = kLanes<double>;
  store(sums, load<double>(sums) + to_double<L>(low_half(run)));
  store(sums + L, load<double>(sums + L) + to_double<L>(high_half(run)));
}

[[gnu::always_inline]] inline void add_in_double(const Vec<double>& run, double* sums) {
  store(sums, load<double>(sums) + run);
}

// An operand of several FMAs. Where there are many registers it is kept in one; where there are few, it is read from
// the cache for each.
template <class V>
[[gnu::always_inline]] inline V reused(V v) {
  if constexpr (kManyRegisters) return in_register(v);
  return v;
}

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

// function.template operator()<G>() for a group of G = `width` vectors: kMost of them, or 1 to kGroupWidth.
template <int kMost, class Function>
[[gnu::always_inline]] inline void with_width(index_t width, const Function& function) {
  if constexpr (kMost > 1) {
    constexpr int kNext = kMost > kGroupWidth ? static_cast<int>(kGroupWidth) : kMost - 1;
    if (width < kMost) return with_width<kNext>(width, function);
  }
  function.template operator()<kMost>();
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

// How far ahead of an entry of a tile of R rows a sweep asks for memory, in entries. While the cache holds whole tiles,
// it asks for the same entry of the next tile; of longer tiles, which the cache would have lost by then, for an entry
// further on in the same row.
template <class Real, int R, class Storage>
index_t fetch_ahead(const Span<Storage>& span) {
  constexpr index_t kTileBytes = index_t{64} << 10;
  constexpr index_t kRowBytes = index_t{3} << 10;
  constexpr auto kSize = static_cast<index_t>(sizeof(Storage));
  const bool keeps_tile = R * span.pairs * kPair<Real> * kSize <= kTileBytes;
  return keeps_tile ? R * span.row_stride : kRowBytes / kSize;
}

// sums[i][g] += w[i] . x[g] over register h of a pair of registers of columns, with the squares of w. Per register R +
// G loads and R G FMAs, and with squares R products, which are added to the sums of both.
template <class Real, class Storage, int h, bool kSquares, int R, int G>
[[gnu::always_inline]] inline void dot_register(const Storage* w, index_t row_stride, const Real* x,
                                                Vec<Real> (&sums)[R][G], Vec<Real> (&row_runs)[R], Real* col_runs) {
  Vec<Real> rows[R];
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i) rows[i] = load_half<Real, h>(w + i * row_stride);
  if constexpr (kSquares) {
    Real* const at = col_runs + h * kLanes<Real>;
    Vec<Real> col = load<Real>(at);
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
      const Vec<Real> square = in_register(rows[i] * rows[i]);
      row_runs[i] += square;
      col += square;
    }
    store(at, col);
  }
#pragma GCC unroll 4
  for (int g = 0; g < G; ++g) {
    const Vec<Real> xv = load<Real>(x + (h * G + g) * kLanes<Real>);
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) sums[i][g] = fma(rows[i], xv, sums[i][g]);
  }
}

// z[g] += sum_i u[i] factors[i][g] over register h of a pair. Per register R + R G + G loads, G stores and R G FMAs.
template <class Real, class Storage, int h, int R, int G>
[[gnu::always_inline]] inline void axpy_register(const Storage* u, index_t row_stride, const Vec<Real> (&factors)[R][G],
                                                 Real* z) {
  Vec<Real> rows[R];
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i) rows[i] = load_half<Real, h>(u + i * row_stride);
#pragma GCC unroll 4
  for (int g = 0; g < G; ++g) {
    Real* const at = z + (h * G + g) * kLanes<Real>;
    Vec<Real> zv = load<Real>(at);
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) zv = fma(rows[i], factors[i][g], zv);
    store(at, zv);
  }
}

// A run of pairs of registers of columns: of the rows that are summed (w), of those before (u), and of the vectors.
template <class Real, class Storage>
struct SweepRun {
  const Storage* w;
  const Storage* u;
  index_t w_stride;
  index_t u_stride;
  index_t ahead;  // from an entry of w to the one that is asked for
  const Real* x;
  Real* z;
  Real* col_runs;
};

// totals[i][g] += w[i] . x[g] and z[g] += sum_i u[i] factors[i][g] over `pairs` pairs, so few that their squares can be
// added in single precision. Moves the pointers of the run behind them.
template <class Real, class Storage, bool kSquares, int R, int G>
[[gnu::always_inline]] inline void sweep_run(SweepRun<Real, Storage>& run, index_t pairs,
                                             const Vec<Real> (&factors)[R][G], Vec<Real> (&totals)[R][G],
                                             Vec<double> (&row_squares)[R]) {
  Vec<Real> sums[R][G] = {};
  Vec<Real> row_runs[R] = {};
  for (const Storage* const end = run.w + pairs * kPair<Real>; run.w != end;) {
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) __builtin_prefetch(run.w + i * run.w_stride + run.ahead, 0, 2);
    unroll<2>([&]<int h>() {
      dot_register<Real, Storage, h, kSquares>(run.w, run.w_stride, run.x, sums, row_runs, run.col_runs);
      axpy_register<Real, Storage, h>(run.u, run.u_stride, factors, run.z);
    });
    run.w += kPair<Real>;
    run.u += kPair<Real>;
    run.x += kPair<Real> * G;
    run.z += kPair<Real> * G;
    if constexpr (kSquares) run.col_runs += kPair<Real>;
  }
  for (int k = 0; k < R * G; ++k) totals[k / G][k % G] += sums[k / G][k % G];
  if constexpr (kSquares) {
    for (int i = 0; i < R; ++i) flush(row_runs[i], row_squares[i]);
  }
}

// Puts the rows' factors, where there are any, between the two phases.
template <class Real, int G>
[[gnu::always_inline]] inline void weight_rows(const double* row_factors, index_t rows, Real* y) {
  if (row_factors == nullptr) return;
  for (index_t i = 0; i < rows; ++i) {
    for (int g = 0; g < G; ++g) y[i * G + g] = weighted_twice(y[i * G + g], row_factors[i]);
  }
}

// What a sweep multiplies with, and what it adds to.
template <class Real>
struct SweepVectors {
  const Real* x;
  Real alpha;
  Real beta;
  const double* row_factors;
  Real* z;

  const double* factors_from(index_t row) const { return row_factors == nullptr ? nullptr : row_factors + row; }
};

// y' = alpha beta current x while z += previous^T y, for R rows and G vectors; y' replaces y. `current` comes from
// memory, or from the cache where the call before has asked for it, and `previous` from the cache.
template <class Real, class Storage, bool kSquares, int R, int G>
void sweep_tile(const Span<Storage> (&current)[2], const Span<Storage> (&previous)[2],
                const SweepVectors<Real>& vectors, Real (&y)[R * G], double* row_squares, Real* col_runs) {
  Vec<Real> totals[R][G] = {};
  Vec<Real> factors[R][G];
  Vec<double> squares[R] = {};
  for (int k = 0; k < R * G; ++k) factors[k / G][k % G] = broadcast(y[k]);
  const Real* x = vectors.x;
  Real* z = vectors.z;
  for (int s = 0; s < 2; ++s) {
    SweepRun<Real, Storage> run{.w = current[s].data,
                                .u = previous[s].data,
                                .w_stride = current[s].row_stride,
                                .u_stride = previous[s].row_stride,
                                .ahead = fetch_ahead<Real, R>(current[s]),
                                .x = x,
                                .z = z,
                                .col_runs = col_runs};
    for (index_t left = current[s].pairs; left > 0; left -= kSquareRun / 2) {
      const index_t pairs = left < kSquareRun / 2 ? left : kSquareRun / 2;
      sweep_run<Real, Storage, kSquares>(run, pairs, factors, totals, squares);
    }
    x = run.x;
    z = run.z;
    col_runs = run.col_runs;
  }
  for (int k = 0; k < R * G; ++k) y[k] = add_lanes(totals[k / G][k % G]) * vectors.alpha * vectors.beta;
  if constexpr (kSquares) {
    for (int i = 0; i < R; ++i) row_squares[i] += add_lanes(squares[i]);
  }
}

// cols[k] += runs[k], which become zero.
template <class Real>
void end_runs(index_t count, Real* runs, double* cols) {
  for (index_t k = 0; k < count; k += kLanes<Real>) {
    add_in_double(load<Real>(runs + k), cols + k);
    store(runs + k, Vec<Real>{});
  }
}

// z += panel^T (alpha beta f^2 o (panel x)) for G vectors. Never inlined, so that each width is compiled by itself.
template <class Real, class Storage, int G, bool kSquares>
[[gnu::noinline]] void sweep_rows(const Panel& panel, const SweepVectors<Real>& vectors, const Squares& squares,
                                  Real* col_runs) {
  constexpr int R = kSweepRows<G>;
  constexpr index_t kRowsOfRun = kSquareRun / R * R;
  const auto* data = static_cast<const Storage*>(panel.data);
  const auto tile_at = [&](index_t row) {
    return Columns<Real, Storage, R>(data + row * panel.row_stride, panel.row_stride, R, panel.cols);
  };
  const auto squares_from = [&](index_t row) { return kSquares ? squares.rows + row : nullptr; };
  const index_t padded = (panel.cols + kPair<Real> - 1) / kPair<Real> * kPair<Real>;
  const index_t whole = panel.rows - panel.rows % R;
  Real y[R * G] = {};  // the first tile is its own predecessor, with factors of zero
  for (index_t row = 0; row < whole; row += R) {
    const auto current = tile_at(row);
    const auto previous = tile_at(row == 0 ? 0 : row - R);
    sweep_tile<Real, Storage, kSquares, R, G>(current.spans, previous.spans, vectors, y, squares_from(row), col_runs);
    weight_rows<Real, G>(vectors.factors_from(row), R, y);
    if (kSquares && ((row + R) % kRowsOfRun == 0 || row + R == whole)) end_runs(padded, col_runs, squares.cols);
  }
  if (whole > 0) {
    const index_t last = whole - R;
    axpy_group<Real, Storage, G, false>({data + last * panel.row_stride, panel.row_stride, R, panel.cols}, y, vectors.z,
                                        {});
  }
  const Panel rest{data + whole * panel.row_stride, panel.row_stride, panel.rows - whole, panel.cols};
  Real totals[R * G * kLanes<Real>] = {};
  add_group_dots<Real, Storage, G>(rest, vectors.x, totals);
  add_up(rest.rows * G, totals, vectors.alpha, vectors.beta, y);
  weight_rows<Real, G>(vectors.factors_from(whole), rest.rows, y);
  axpy_group<Real, Storage, G, kSquares>(rest, y, vectors.z, {squares_from(whole), squares.cols});
}

template <class Real, class Storage, int G>
void sweep_either(const Panel& panel, const SweepVectors<Real>& vectors, const Squares& squares, Real* col_runs) {
  if (!squares.wanted()) return sweep_rows<Real, Storage, G, false>(panel, vectors, squares, col_runs);
  sweep_rows<Real, Storage, G, true>(panel, vectors, squares, col_runs);
}

template <class Real, class Storage>
void sweep(const Panel& panel, index_t width, const Real* x, Real alpha, Real beta, const double* row_factors, Real* z,
           const Squares& squares, Real* col_runs) {
  const SweepVectors<Real> vectors{x, alpha, beta, row_factors, z};
  with_width<kGroupWidth>(width, [&]<int G>() { sweep_either<Real, Storage, G>(panel, vectors, squares, col_runs); });
}

template <class Real, class Storage>
void pack(const PackSource& source, Real* target, index_t target_stride) {
  const auto* data = static_cast<const Storage*>(source.data);
  for (index_t i = 0; i < source.rows; ++i) {
    const Storage* row = data + i * source.row_stride;
    Real* line = target + i * target_stride;
    index_t j = 0;
    if (source.col_stride == 1) {
      for (; j + kLanes<Real> <= source.cols; j += kLanes<Real>) store(line + j, load<Real>(row + j));
    }
    for (; j < source.cols; ++j) line[j] = load_one<Real>(row + j * source.col_stride);
  }
}

template <class Bits>
std::uint64_t read(const void* data, index_t count) {
  constexpr index_t L = kVectorBytes / static_cast<index_t>(sizeof(Bits));
  using Integers = VecN<Bits, static_cast<int>(L)>;
  const auto* entries = static_cast<const Bits*>(data);
  Integers sums[4] = {};
  index_t k = 0;
  for (; k + 4 * L <= count; k += 4 * L) {
#pragma GCC unroll 4
    for (index_t s = 0; s < 4; ++s) sums[s] += load_as<Integers>(entries + k + s * L);
  }
  const Integers joined = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  Bits total = 0;
  for (index_t lane = 0; lane < L; ++lane) total = static_cast<Bits>(total + joined[lane]);
  for (; k < count; ++k) total = static_cast<Bits>(total + entries[k]);
  return total;
}

template <class Real, class Storage, class Bits>
constexpr ProductKernels<Real> kKernels = {
    kLanes<Real>,
    kPairedStorage<Real, Storage>,
    kWideGroup,
    add_dots<Real, Storage>,
    add_up<Real>,
    axpy<Real, Storage>,
    kSweeps<Real, Storage> ? &sweep<Real, Storage> : nullptr,
    pack<Real, Storage>,
    read<Bits>,
};

template <class Real>
const ProductKernels<Real>* kernels_for(DType dtype) {
  return dispatch(dtype, []<DType storage>() -> const ProductKernels<Real>* {
    if constexpr (kNeedsDouble<storage> && sizeof(Real) == sizeof(float)) {
      return nullptr;
    } else {
      return &kKernels<Real, typename StorageOf<storage>::Type, typename Entry<storage>::Bits>;
    }
  });
}

}  // namespace

}  // namespace mpfast::cpu::MPFAST_ISA

namespace mpfast::cpu {

template <>
const ProductKernels<float>* product_kernels<isa::MPFAST_ISA, float>(DType storage) {
  return MPFAST_ISA::kernels_for<float>(storage);
}

template <>
const ProductKernels<double>* product_kernels<isa::MPFAST_ISA, double>(DType storage) {
  return MPFAST_ISA::kernels_for<double>(storage);
}

}  // namespace mpfast::cpu
