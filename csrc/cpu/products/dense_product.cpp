#include "cpu/products/dense_product.hpp"

#include <algorithm>

#include "linalg/lapack.hpp"

namespace mpfast::cpu {

void dense_product(Team& team, index_t m, index_t n, index_t k, const double* a, const double* b, double* c) {
  if (k == 0) std::fill_n(c, m * n, 0.0);  // BLAS takes no matrix without rows
  if (m == 0 || n == 0 || k == 0) return;
  constexpr index_t kRows = 256;
  constexpr index_t kCols = 512;
  const index_t row_tiles = ceil_div(m, kRows);
  team.parallel_for(row_tiles * ceil_div(n, kCols), [&](index_t tile, int) {
    const index_t row = (tile % row_tiles) * kRows;
    const index_t col = (tile / row_tiles) * kCols;
    // Columns of C^T = B^T A^T, as BLAS sees the rows of C.
    linalg::gemm(false, false, std::min(kCols, n - col), std::min(kRows, m - row), k, 1.0, b + col, n, a + row * k, k,
                 0.0, c + row * n + col, n);
  });
}

}  // namespace mpfast::cpu
