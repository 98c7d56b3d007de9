#include "cpu/eigen/bidiagonal.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/abandonable.hpp"
#include "cpu/eigen/householder_qr.hpp"
#include "linalg/lapack.hpp"

namespace mpfast::cpu {

namespace {

// Above this aspect ratio it is cheaper to bidiagonalise the R of a QR factorisation (Chan 1982: from 5/3 on, by
// flops).
constexpr double kQrFirstAspect = 1.6;

// Half of the flops of a panel step are matrix-vector products on the whole trailing matrix; 16 columns keep one LAPACK
// call under half a second at n = 4096 and still write the trailing matrix 32 times less often than it is read.
constexpr index_t kBidiagonalPanel = 16;
constexpr index_t kUpdateTile = 256;
// Below this many entries a whole call takes less than about 50 ms and needs no thread of its own.
constexpr index_t kQuickEntries = 512 * 512;

}  // namespace

Bidiagonalization::Bidiagonalization(index_t m, index_t n, Buffer<double> matrix, index_t ld)
    : a(std::move(matrix)),
      lda(ld),
      d(static_cast<std::size_t>(n)),
      e(static_cast<std::size_t>(n)),
      tauq(static_cast<std::size_t>(n)),
      taup(static_cast<std::size_t>(n)),
      ldx(padded_leading_dimension(m)),
      ldy(padded_leading_dimension(n)),
      x(ldx, kBidiagonalPanel, "bidiagonalisation panels"),
      y(ldy, kBidiagonalPanel, "bidiagonalisation panels") {}

// LAPACK's gebrd with the trailing update spread over the team: after k steps A -= V Y^T + X U^T, with V below the
// diagonal of the panel's columns and U to the right of the superdiagonal in its rows.
void bidiagonalize(Team& team, index_t m, index_t n, const std::shared_ptr<Bidiagonalization>& state) {
  const index_t lda = state->lda;
  constexpr index_t k = kBidiagonalPanel;
  const Poll poll = [&team] { team.check_interrupt(); };
  index_t i = 0;
  for (; (m - i) * (n - i) > kQuickEntries && n - i > 2 * k; i += k) {
    const index_t rows = m - i;
    const index_t cols = n - i;
    double* corner = state->a.get() + i + i * lda;
    const auto panel = [state, corner, rows, cols, lda, i] {
      auto& s = *state;
      linalg::bidiagonalize_panel(rows, cols, k, corner, lda, s.d.data() + i, s.e.data() + i, s.tauq.data() + i,
                                  s.taup.data() + i, s.x.get(), s.ldx, s.y.get(), s.ldy);
    };
    run_abandonable(poll, panel);
    const index_t row_tiles = ceil_div(rows - k, kUpdateTile);
    const index_t col_tiles = ceil_div(cols - k, kUpdateTile);
    team.parallel_for(row_tiles * col_tiles, [&](index_t tile, int) {
      const index_t r = k + (tile % row_tiles) * kUpdateTile;
      const index_t c = k + (tile / row_tiles) * kUpdateTile;
      const index_t height = std::min(kUpdateTile, rows - r);
      const index_t width = std::min(kUpdateTile, cols - c);
      double* block = corner + r + c * lda;
      linalg::gemm(false, true, height, width, k, -1.0, corner + r, lda, state->y.get() + c, state->ldy, 1.0, block,
                   lda);
      linalg::gemm(false, false, height, width, k, -1.0, state->x.get() + r, state->ldx, corner + c * lda, lda, 1.0,
                   block, lda);
    });
  }
  auto& s = *state;
  linalg::bidiagonalize(m - i, n - i, s.a.get() + i + i * lda, lda, s.d.data() + i, s.e.data() + i, s.tauq.data() + i,
                        s.taup.data() + i);
}

void bidiagonal_values(Team& team, index_t m, index_t n, Buffer<double> a, index_t lda, double* values) {
  if (static_cast<double>(m) > kQrFirstAspect * static_cast<double>(n)) {
    HouseholderQr(team, m, n, a.get(), lda);
    m = n;
    for (index_t j = 0; j < n; ++j) std::fill_n(a.get() + j + 1 + j * lda, n - j - 1, 0.0);
  }
  const auto state = std::make_shared<Bidiagonalization>(m, n, std::move(a), lda);
  bidiagonalize(team, m, n, state);
  run_abandonable([&team] { team.check_interrupt(); },
                  [state, n] { linalg::bidiagonal_singular_values(n, state->d.data(), state->e.data()); });
  std::copy(state->d.begin(), state->d.end(), values);
}

}  // namespace mpfast::cpu
