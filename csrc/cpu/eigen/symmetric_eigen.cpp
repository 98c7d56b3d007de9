#include "cpu/eigen/symmetric_eigen.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>
#include <utility>
#include <vector>

#include "core/buffer.hpp"
#include "core/lower_tiles.hpp"
#include "cpu/eigen/band_kernels.hpp"
#include "cpu/eigen/tridiagonal_values.hpp"
#include "cpu/machine/dispatch.hpp"
#include "linalg/lapack.hpp"

namespace mpfast::cpu {

namespace {

// All tuning constants of the eigenvalue path, from measurements on two machines of 2 cores, one of AVX2 with 512 kB of
// L2 and one of AVX-512 with 1 MB. They depend on n alone, so that results do not depend on the team. A wider band
// makes the first stage's products more efficient and the second stage proportionally longer, so the best width grows
// with n.
struct Tuning {
  index_t bandwidth;      // 0: LAPACK in one stage, which is faster until little of A stays in L2
  index_t tile;           // side of the tiles of the trailing updates
  index_t sweeps_a_task;  // sweeps of the bulge chase that travel together through one core's L2
};

Tuning tuning(index_t n) {
  if (n < 640) return {0, 0, 0};
  if (n < 1024) return {32, 96, 8};
  if (n < 3072) return {32, 128, 8};
  if (n < 8192) return {48, 192, 8};
  return {64, 256, 8};
}

// First stage: Q^T A Q = band matrix of bandwidth b, panel by panel.
//
// With the QR factorisation of a panel below the band, Q = I - V T V^T (V is m x b), the trailing matrix becomes
//   Q^T A Q = A - V W^T - W V^T,   W = Y T - 1/2 V (T^T V^T Y T),   Y = A V,
// 4 m^2 b flops of gemm per panel, 4/3 n^3 in all. The trailing matrix is read twice (Y, with symmetry: every tile
// serves two block rows) and written once per panel; it streams from L3 or memory at 16 flops a byte.
// A's diagonal tiles are kept full, its other tiles only below the diagonal. Tiles lie on a grid fixed in A.
// The next panel is updated and factored first, beside the rest of the trailing update.
class BandReduction {
 public:
  BandReduction(Team& team, index_t n, double* a, index_t lda, const Tuning& tuning)
      : team_(team),
        n_(n),
        a_(a),
        lda_(lda),
        b_(tuning.bandwidth),
        tile_(tuning.tile),
        ldv_(padded_leading_dimension(n)),
        vwv_(ldv_, 3 * b_, "panel factors"),
        scratch_(ldv_, b_, "panel products"),
        t_(2 * b_, b_, "panel reflectors"),
        partial_(b_ * b_, ceil_div(n, tile_), "panel partial sums") {}

  void run() {
    mirror_diagonal_tiles();
    factor_panel(0, t(0));
    for (index_t k = 0; n_ - (k + b_) > 0; k += b_) {
      team_.check_interrupt();
      const index_t first = k + b_;
      load_reflectors(k);
      form_w(first, t((k / b_) % 2));
      update_trailing(first, t((k / b_ + 1) % 2));
    }
  }

 private:
  double* at(index_t i, index_t j) { return a_ + i + j * lda_; }
  double* t(index_t which) { return t_.get() + which * b_ * b_; }
  double* v(index_t row) { return vwv_.get() + row; }
  double* w(index_t row) { return vwv_.get() + row + b_ * ldv_; }
  index_t tile_begin(index_t tile, index_t first) const { return std::max(tile * tile_, first); }
  index_t tile_end(index_t tile) const { return std::min((tile + 1) * tile_, n_); }

  void mirror_diagonal_tiles() {
    team_.parallel_for(ceil_div(n_, tile_), [this](index_t tile, int) {
      for (index_t j = tile * tile_; j < tile_end(tile); ++j) {
        for (index_t i = j + 1; i < tile_end(tile); ++i) *at(j, i) = *at(i, j);
      }
    });
  }

  // QR of columns k .. k+b-1 below row k+b. When fewer than b rows are left, the columns beyond the square part only
  // need Q^T from the left: they stay inside the band.
  void factor_panel(index_t k, double* t) {
    const index_t rows = n_ - (k + b_);
    if (rows <= 0) return;
    const index_t cols = std::min(rows, b_);
    std::fill(t, t + b_ * b_, 0.0);
    double* panel = at(k + b_, k);
    linalg::qr_compact_wy(rows, cols, panel, lda_, t, b_);
    if (cols < b_) {
      std::vector<double> workspace(static_cast<std::size_t>((b_ - cols) * cols));
      linalg::apply_q(true, rows, b_ - cols, cols, panel, lda_, t, b_, at(k + b_, k + cols), lda_, workspace.data());
    }
  }

  // Copies V out of the panel at column k, with its unit diagonal and zeros, on both sides of W's place: [V W V].
  void load_reflectors(index_t k) {
    const index_t first = k + b_;
    for (index_t j = 0; j < b_; ++j) {
      double* left = v(first) + j * ldv_;
      const index_t rows = n_ - first;
      const double* column = at(first, k + j);
      const index_t lead = std::min(j, rows);
      std::fill(left, left + lead, 0.0);
      if (j < rows) left[j] = 1;
      if (j + 1 < rows) std::copy(column + j + 1, column + rows, left + j + 1);
      std::copy(left, left + rows, left + 2 * b_ * ldv_);
    }
  }

  void form_w(index_t first, const double* t) {
    const index_t tile0 = first / tile_;
    const index_t count = ceil_div(n_, tile_) - tile0;
    // X = A V T block row by block row, and the blocks' shares of V^T X.
    team_.parallel_for(count, [&](index_t index, int) {
      const index_t begin = tile_begin(tile0 + index, first);
      const index_t end = tile_end(tile0 + index);
      const index_t rows = end - begin;
      double* y = scratch_.get() + begin;
      linalg::gemm(false, false, rows, b_, end - first, 1.0, at(begin, first), lda_, v(first), ldv_, 0.0, y, ldv_);
      if (end < n_) {
        linalg::gemm(true, false, rows, b_, n_ - end, 1.0, at(end, begin), lda_, v(end), ldv_, 1.0, y, ldv_);
      }
      linalg::gemm(false, false, rows, b_, b_, 1.0, y, ldv_, t, b_, 0.0, w(begin), ldv_);
      linalg::gemm(true, false, b_, b_, rows, 1.0, v(begin), ldv_, w(begin), ldv_, 0.0,
                   partial_.get() + index * b_ * b_, b_);
    });
    double* sum = partial_.get();
    for (index_t index = 1; index < count; ++index) {
      const double* share = partial_.get() + index * b_ * b_;
      for (index_t i = 0; i < b_ * b_; ++i) sum[i] += share[i];
    }
    std::vector<double> half(static_cast<std::size_t>(b_ * b_));
    linalg::gemm(true, false, b_, b_, b_, -0.5, t, b_, sum, b_, 0.0, half.data(), b_);
    team_.parallel_for(count, [&](index_t index, int) {
      const index_t begin = tile_begin(tile0 + index, first);
      linalg::gemm(false, false, tile_end(tile0 + index) - begin, b_, b_, 1.0, v(begin), ldv_, half.data(), b_, 1.0,
                   w(begin), ldv_);
    });
  }

  // A -= [V W] [W V]^T. Task 0 does the columns of the next panel and factors it; the others take one tile each of
  // what lies to the right of it.
  void update_trailing(index_t first, double* next_t) {
    const index_t second = first + b_;
    const index_t tile0 = second / tile_;
    const index_t count = second < n_ ? ceil_div(n_, tile_) - tile0 : 0;
    team_.parallel_for(1 + lower_tiles(count), [&](index_t task, int) {
      if (task == 0) {
        update_block(first, n_, first, std::min(second, n_));
        factor_panel(first, next_t);
        return;
      }
      const auto [row, column] = lower_tile(task - 1, count);
      update_block(tile_begin(tile0 + row, second), tile_end(tile0 + row), tile_begin(tile0 + column, second),
                   tile_end(tile0 + column));
    });
  }

  void update_block(index_t row, index_t row_end, index_t col, index_t col_end) {
    linalg::gemm(false, true, row_end - row, col_end - col, 2 * b_, -1.0, v(row), ldv_, w(col), ldv_, 1.0, at(row, col),
                 lda_);
  }

  Team& team_;
  index_t n_;
  double* a_;  // n x n, leading dimension lda_
  index_t lda_;
  index_t b_;
  index_t tile_;
  index_t ldv_;
  Buffer<double> vwv_;      // [V W V], n x 3b: [V W] and [W V] are both contiguous
  Buffer<double> scratch_;  // Y, n x b
  Buffer<double> t_;        // T of this panel and of the next
  Buffer<double> partial_;  // V^T X of every block row
};

// Second stage: band to tridiagonal by bulge chasing, 6 n^2 b flops.
//
// Step (s, t) of band_kernels.hpp needs step (s - 1, t + 1) done and nothing later of sweep s - 1, so sweep s may
// follow two steps behind. A task takes a few consecutive sweeps and runs them as a wave: their blocks stay in one
// core's L2 and move between cores once a task, not once a sweep. Tasks follow each other the same way, so the
// operations and their order on every entry are fixed: the team's size changes nothing.
void chase_bulges(Team& team, const Band& band, index_t sweeps_a_task) {
  const ChaseStep step_kernel = for_active_isa([]<class Isa>() { return &chase_step<Isa>; });
  const index_t sweeps = band.n - 2;
  if (sweeps <= 0 || band.bandwidth < 2) return;
  const index_t tasks = ceil_div(sweeps, sweeps_a_task);
  const auto steps_of = [&](index_t sweep) { return ceil_div(band.n - 1 - sweep, band.bandwidth); };
  // Steps done by the last sweep of each task.
  std::vector<std::atomic<index_t>> done(static_cast<std::size_t>(tasks));
  // Allocated beforehand: a task must not throw, since others wait for it.
  std::vector<Reflector> storage(static_cast<std::size_t>(team.size() * sweeps_a_task));
  team.parallel_for(tasks, [&](index_t task, int worker) {
    const index_t begin = task * sweeps_a_task;
    const index_t end = std::min(begin + sweeps_a_task, sweeps);
    Reflector* reflectors = storage.data() + worker * sweeps_a_task;
    const auto wait_for = [&](index_t steps) {
      if (task == 0) return;
      const auto& before = done[static_cast<std::size_t>(task - 1)];
      for (int spins = 0; before.load(std::memory_order_acquire) < steps; ++spins) {
        if (spins > 200) std::this_thread::yield();
      }
    };
    const index_t waves = steps_of(end - 1) + 2 * (end - 1 - begin);
    for (index_t wave = 0; wave < waves; ++wave) {
      for (index_t sweep = begin; sweep < end; ++sweep) {
        const index_t step = wave - 2 * (sweep - begin);
        if (step < 0) break;
        if (step >= steps_of(sweep)) continue;
        if (sweep == begin) wait_for(std::min(step + 2, steps_of(begin - 1)));
        step_kernel(band, sweep, step, reflectors[sweep - begin]);
        if (sweep == end - 1) done[static_cast<std::size_t>(task)].store(step + 1, std::memory_order_release);
      }
    }
  });
}

// Squares of entries must stay far from overflow and underflow.
int scaling_exponent(index_t n, const double* a, index_t lda) {
  double largest = 0;
  for (index_t j = 0; j < n; ++j) {
    for (index_t i = j; i < n; ++i) largest = std::max(largest, std::abs(a[i + j * lda]));
  }
  if (largest == 0) return 0;
  const int exponent = std::ilogb(largest);
  return std::abs(exponent) < 300 ? 0 : exponent;
}

}  // namespace

void symmetric_eigenvalues(Team& team, index_t n, double* a, index_t lda, double* values) {
  if (n == 0) return;
  const int exponent = scaling_exponent(n, a, lda);
  if (exponent != 0) {
    for (index_t j = 0; j < n; ++j) {
      for (index_t i = j; i < n; ++i) a[i + j * lda] = std::ldexp(a[i + j * lda], -exponent);
    }
  }
  std::vector<double> d(static_cast<std::size_t>(n));
  std::vector<double> e(static_cast<std::size_t>(n));
  const Tuning plan = tuning(n);
  if (plan.bandwidth == 0) {
    std::vector<double> tau(static_cast<std::size_t>(n));
    linalg::tridiagonalize(n, a, lda, d.data(), e.data(), tau.data());
  } else {
    const index_t b = plan.bandwidth;
    BandReduction(team, n, a, lda, plan).run();
    Buffer<double> storage(2 * b, n, "the band matrix");
    const Band band{storage.get(), n, b, 2 * b - 1};
    for (index_t j = 0; j < n; ++j) {
      const index_t kept = std::min(b + 1, n - j);
      double* column = storage.get() + j * 2 * b;
      std::copy(a + j + j * lda, a + j + j * lda + kept, column);
      std::fill(column + kept, column + 2 * b, 0.0);
    }
    chase_bulges(team, band, plan.sweeps_a_task);
    for (index_t j = 0; j < n; ++j) {
      d[static_cast<std::size_t>(j)] = storage.get()[j * 2 * b];
      e[static_cast<std::size_t>(j)] = storage.get()[j * 2 * b + 1];
    }
  }
  tridiagonal_values(team, n, d.data(), e.data(), values);
  if (exponent != 0) {
    for (index_t i = 0; i < n; ++i) values[i] = std::ldexp(values[i], exponent);
  }
}

}  // namespace mpfast::cpu
