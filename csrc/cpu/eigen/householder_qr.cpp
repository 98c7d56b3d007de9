#include "cpu/eigen/householder_qr.hpp"

#include <algorithm>

#include "linalg/lapack.hpp"

namespace mpfast::cpu {

HouseholderQr::HouseholderQr(Team& team, index_t m, index_t n, double* a, index_t lda)
    : m_(m),
      reflectors_(std::min(m, n)),
      a_(a),
      lda_(lda),
      t_(kPanel * kPanel, ceil_div(reflectors_, kPanel), "QR reflectors") {
  Buffer<double> workspace(kTile * kPanel, team.size(), "QR workspace");
  for (index_t k = 0; k < reflectors_; k += kPanel) {
    team.check_interrupt();
    const index_t width = std::min(kPanel, reflectors_ - k);
    const index_t rows = m - k;
    double* panel = a + k + k * lda;
    double* factor = t_.get() + k * kPanel;
    std::fill_n(factor, kPanel * kPanel, 0.0);
    linalg::qr_compact_wy(rows, width, panel, lda, factor, kPanel);
    const index_t rest = n - k - width;
    team.parallel_for(ceil_div(rest, kTile), [&](index_t tile, int worker) {
      const index_t begin = tile * kTile;
      linalg::apply_q(true, rows, std::min(kTile, rest - begin), width, panel, lda, factor, kPanel,
                      panel + (width + begin) * lda, lda, workspace.get() + worker * kTile * kPanel);
    });
  }
}

void HouseholderQr::apply(Team& team, index_t columns, double* c, index_t ldc) const {
  Buffer<double> workspace(kTile * kPanel, team.size(), "QR workspace");
  team.parallel_for(ceil_div(columns, kTile), [&](index_t tile, int worker) {
    const index_t begin = tile * kTile;
    for (index_t panel = ceil_div(reflectors_, kPanel) - 1; panel >= 0; --panel) {
      const index_t k = panel * kPanel;
      linalg::apply_q(false, m_ - k, std::min(kTile, columns - begin), std::min(kPanel, reflectors_ - k),
                      a_ + k + k * lda_, lda_, t_.get() + k * kPanel, kPanel, c + k + begin * ldc, ldc,
                      workspace.get() + worker * kTile * kPanel);
    }
  });
}

}  // namespace mpfast::cpu
