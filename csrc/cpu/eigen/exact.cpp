#include "cpu/eigen/exact.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "core/buffer.hpp"
#include "core/changed.hpp"
#include "core/factors.hpp"
#include "core/lower_tiles.hpp"
#include "cpu/eigen/bidiagonal.hpp"
#include "cpu/eigen/symmetric_eigen.hpp"
#include "linalg/lapack.hpp"

namespace mpfast::cpu {

namespace {

// A panel of the long side holds about this many doubles (2 MB), so that it is still in a cache when it is multiplied.
// It has at least kMinDepth rows, so that updating the tiles of G costs little next to the products.
constexpr index_t kPanelEntries = index_t{1} << 18;
constexpr index_t kMinDepth = 256;
constexpr index_t kMaxDepth = 4096;
// Runs of W that one conversion task widens.
constexpr index_t kRunsATask = 16;

// The largest relative error at the lower quartile that the Gram route may have.
constexpr double kQuartileTolerance = 1e-6;

// Outside these bounds the trace of G says that entries of W over- or underflow when squared.
constexpr double kSmallTrace = 1e-200;
constexpr double kLargeTrace = 1e200;

// The side of the tiles of G: large enough for gemm to run at its full rate, small enough to keep eight threads busy.
index_t gram_tile(index_t p) { return p >= 3072 ? 512 : p >= 512 ? 256 : p >= 256 ? 192 : 128; }

struct Nonfinite {
  index_t count = 0;
  index_t first_row = std::numeric_limits<index_t>::max();
  index_t first_col = std::numeric_limits<index_t>::max();

  void add(index_t row, index_t col) { merge({1, row, col}); }
  void merge(const Nonfinite& other) {
    count += other.count;
    if (std::pair(other.first_row, other.first_col) < std::pair(first_row, first_col)) {
      first_row = other.first_row;
      first_col = other.first_col;
    }
  }
};

// S: W or its transpose, long side as rows.
struct LongView {
  LongView(const Source& w, const Factors& of_w)
      : transposed(w.rows < w.cols),
        view(transposed ? w.transposed() : w),
        factors(transposed ? of_w.transposed() : of_w) {}
  bool transposed;
  Source view;
  Factors factors;
};

// Multiplies a run of widened entries, which all are in one line of W, by the factor of that line and their own. (The
// two first: zero times an entry is zero, and no entry is so large that it is not.)
void weight_run(double line_factor, const double* factors, index_t count, double scale, double* entries) {
  for (index_t i = 0; i < count; ++i) entries[i] = entries[i] * (line_factor * factors[i]) * scale;
}

// Widens rows [begin, end) of S into a column-major panel without transposing in memory: p x depth (`by_rows`) when
// rows of S are the denser runs, depth x p otherwise.
Nonfinite widen_panel(Team& team, const LongView& s, index_t begin, index_t end, bool by_rows, double scale,
                      double* panel, index_t ld) {
  const Source part = s.view.part(begin, end - begin, 0, s.view.cols);
  const Source runs = by_rows ? part : part.transposed();
  std::vector<Nonfinite> found(static_cast<std::size_t>(ceil_div(runs.rows, kRunsATask)));
  team.parallel_for(ceil_div(runs.rows, kRunsATask), [&](index_t task, int) {
    const bool weighs = s.factors.given();
    const index_t first = task * kRunsATask;
    const index_t last = std::min(first + kRunsATask, runs.rows);
    bool finite = true;
    for (index_t run = first; run < last; ++run) {
      double* const to = panel + run * ld;
      finite = runs.widen(run, 0, runs.cols, weighs ? 1.0 : scale, to) && finite;
      if (!weighs) continue;
      const double line_factor = by_rows ? s.factors.rows[begin + run] : s.factors.cols[run];
      weight_run(line_factor, by_rows ? s.factors.cols : s.factors.rows + begin, runs.cols, scale, to);
    }
    if (finite) return;
    runs.part(first, last - first, 0, runs.cols).for_each_nonfinite([&](index_t i, index_t j) {
      const index_t row = begin + (by_rows ? first + i : j);
      const index_t col = by_rows ? j : first + i;
      found[static_cast<std::size_t>(task)].add(s.transposed ? col : row, s.transposed ? row : col);
    });
  });
  Nonfinite total;
  for (const auto& share : found) total.merge(share);
  return total;
}

// Adds a widened panel's share to the lower tiles of G.
void accumulate(Team& team, index_t p, index_t depth, bool by_rows, const double* panel, index_t ld, double beta,
                double* g, index_t ldg) {
  const index_t tile = gram_tile(p);
  const index_t count = ceil_div(p, tile);
  team.parallel_for(lower_tiles(count), [&](index_t task, int) {
    const auto [row, column] = lower_tile(task, count);
    const index_t i = row * tile;
    const index_t j = column * tile;
    const index_t height = std::min(tile, p - i);
    const index_t width = std::min(tile, p - j);
    double* block = g + i + j * ldg;
    const index_t step = by_rows ? 1 : ld;
    if (i == j && by_rows) {
      linalg::syrk_lower(height, depth, 1.0, panel + i, ld, beta, block, ldg);
    } else if (i == j) {
      linalg::syrk_lower_transposed(height, depth, 1.0, panel + i * ld, ld, beta, block, ldg);
    } else {
      linalg::gemm(!by_rows, by_rows, height, width, depth, 1.0, panel + i * step, ld, panel + j * step, ld, beta,
                   block, ldg);
    }
  });
}

// The largest magnitude in each row of S, which is finite.
std::vector<double> row_maxima(Team& team, const LongView& s) {
  const Source& view = s.view;
  constexpr index_t kChunk = 512;
  std::vector<double> maxima(static_cast<std::size_t>(view.rows), 0.0);
  team.parallel_for(ceil_div(view.rows, kRunsATask), [&](index_t task, int) {
    double chunk[kChunk];
    for (index_t row = task * kRunsATask; row < std::min((task + 1) * kRunsATask, view.rows); ++row) {
      double largest = 0;
      for (index_t col = 0; col < view.cols; col += kChunk) {
        const index_t count = std::min(kChunk, view.cols - col);
        view.widen(row, col, count, 1.0, chunk);
        if (s.factors.given()) weight_run(s.factors.rows[row], s.factors.cols + col, count, 1.0, chunk);
        for (index_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(chunk[i]));
      }
      maxima[static_cast<std::size_t>(row)] = largest;
    }
  });
  return maxima;
}

int largest_exponent(Team& team, const LongView& s) {
  const std::vector<double> maxima = row_maxima(team, s);
  const double largest = *std::max_element(maxima.begin(), maxima.end());
  // 2^-exponent must be a number too: denormal entries are brought closer to one, but not all the way.
  return largest == 0 ? 0 : std::max(std::ilogb(largest), -1000);
}

index_t count_positive(const std::vector<double>& x) {
  return std::count_if(x.begin(), x.end(), [](double value) { return value > 0; });
}

// Whether the Gram matrix has lost the lower quartile of the `rank` values that may be non-zero (descending).
bool quartile_is_lost(const double* values, index_t rank) {
  if (rank == 0) return false;
  constexpr double kUnit = std::numeric_limits<double>::epsilon() / 2;
  const double quartile = values[(3 * rank) / 4];
  return kUnit * values[0] * values[0] > kQuartileTolerance * quartile * quartile;
}

void bidiagonal_route(Team& team, const LongView& s, int exponent, double* values) {
  const index_t q = s.view.rows;
  const index_t p = s.view.cols;
  const index_t ld = padded_leading_dimension(q);
  Buffer<double> copy(ld, p, "the float64 copy of W that its singular values need (their range is too wide for W^T W)");
  const Nonfinite found = widen_panel(team, s, 0, q, false, std::ldexp(1.0, -exponent), copy.get(), ld);
  if (found.count > 0) throw MatrixChanged();  // LAPACK need not come to an end with them
  bidiagonal_values(team, q, p, std::move(copy), ld, values);
}

}  // namespace

ExactStats gram_matrix(Team& team, const Source& w, const Factors& factors, int scale_exponent, double* g,
                       index_t ldg) {
  const LongView s(w, factors);
  const index_t q = s.view.rows;
  const index_t p = s.view.cols;
  const bool by_rows = s.view.has_dense_rows();
  const index_t depth = std::min(q, std::clamp(kPanelEntries / std::max(p, index_t{1}), kMinDepth, kMaxDepth));
  const index_t ld = padded_leading_dimension(by_rows ? p : depth);
  Buffer<double> panel(ld, by_rows ? depth : p, "a panel of W in float64");
  const double scale = std::ldexp(1.0, -scale_exponent);

  Nonfinite found;
  for (index_t begin = 0; begin < q; begin += depth) {
    const index_t end = std::min(begin + depth, q);
    found.merge(widen_panel(team, s, begin, end, by_rows, scale, panel.get(), ld));
    if (found.count > 0) continue;
    accumulate(team, p, end - begin, by_rows, panel.get(), ld, begin == 0 ? 0.0 : 1.0, g, ldg);
  }

  ExactStats stats;
  stats.nonfinite_count = found.count;
  if (found.count > 0) {
    stats.first_nonfinite_row = found.first_row;
    stats.first_nonfinite_col = found.first_col;
    return stats;
  }
  double trace = 0;
  for (index_t i = 0; i < p; ++i) trace += g[i + i * ldg];
  stats.frobenius_norm = std::sqrt(trace);
  return stats;
}

index_t exact_work_bytes(const Source& w) {
  const index_t p = std::min(w.rows, w.cols);
  const index_t panel = std::max(kPanelEntries, kMinDepth * p);
  constexpr index_t kFactors = 512;  // more columns than the panels of the reduction and its band have together
  return static_cast<index_t>(sizeof(double)) * (p * p + panel + kFactors * p);
}

void singular_values(Team& team, const Source& w, const Factors& factors, double* values, ExactStats* stats,
                     double* gram, int scale_exponent) {
  const index_t p = std::min(w.rows, w.cols);
  *stats = {};
  if (p == 0) return;
  const index_t ldg = padded_leading_dimension(p);
  Buffer<double> g(ldg, p, "the Gram matrix of W");

  int exponent = 0;
  const LongView s(w, factors);
  *stats = gram_matrix(team, w, factors, exponent, g.get(), ldg);
  if (stats->nonfinite_count > 0) return;
  const double trace = stats->frobenius_norm * stats->frobenius_norm;
  if (!(trace > kSmallTrace && trace < kLargeTrace)) {
    exponent = largest_exponent(team, s);
    if (exponent != 0) *stats = gram_matrix(team, w, factors, exponent, g.get(), ldg);
    if (stats->nonfinite_count > 0) throw MatrixChanged();
  }
  stats->frobenius_norm = std::ldexp(stats->frobenius_norm, exponent);
  if (gram != nullptr) {
    const int shift = 2 * (exponent - scale_exponent);
    for (index_t j = 0; j < p; ++j) {
      for (index_t i = j; i < p; ++i) gram[i + j * p] = std::ldexp(g.get()[i + j * ldg], shift);
    }
  }

  std::vector<double> diagonal(static_cast<std::size_t>(p));
  for (index_t i = 0; i < p; ++i) diagonal[static_cast<std::size_t>(i)] = g.get()[i + i * ldg];
  symmetric_eigenvalues(team, p, g.get(), ldg, values);
  std::reverse(values, values + p);
  for (index_t i = 0; i < p; ++i) values[i] = std::sqrt(std::max(values[i], 0.0));

  // Zero rows and columns bound the rank: the values they take away are zero, not lost. G shows those of the short
  // side. For those of the long side W must be read again, which is only done when values seem to be lost.
  index_t rank = count_positive(diagonal);
  if (quartile_is_lost(values, rank)) rank = std::min(rank, count_positive(row_maxima(team, s)));
  if (quartile_is_lost(values, rank)) {
    g = {};
    stats->method = ExactMethod::bidiagonal;
    bidiagonal_route(team, s, exponent, values);
  }
  std::fill(values + rank, values + p, 0.0);
  if (exponent != 0) {
    for (index_t i = 0; i < p; ++i) values[i] = std::ldexp(values[i], exponent);
  }
}

}  // namespace mpfast::cpu
