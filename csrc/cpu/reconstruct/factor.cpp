#include "cpu/reconstruct/factor.hpp"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "core/buffer.hpp"
#include "core/lower_tiles.hpp"
#include "core/small_matrix.hpp"
#include "linalg/lapack.hpp"
#include "linalg/triangular.hpp"

namespace mpfast::cpu {

namespace {

// Tiles in which a matrix is read together with its transpose: both stay in the second-level cache.
constexpr index_t kReadTile = 64;

// Blocks of the factorisation: large enough for products at their full rate, and some milliseconds long.
index_t factor_block(index_t n) { return n >= 3072 ? 512 : n >= 1024 ? 256 : 128; }

std::size_t position(index_t i) { return static_cast<std::size_t>(i); }

// The tile with its first row and column at (row, column), row-major.
void widen_tile(const MatrixView& from, index_t row, index_t rows, index_t column, index_t columns, double* to) {
  dispatch(from.dtype, [&]<DType dtype>() {
    const auto* bits = static_cast<const typename Entry<dtype>::Bits*>(from.data);
    for (index_t i = 0; i < rows; ++i) {
      for (index_t j = 0; j < columns; ++j) {
        const auto entry = bits[(row + i) * from.row_stride + (column + j) * from.col_stride];
        const bool finite = (entry & Entry<dtype>::kExponent) != Entry<dtype>::kExponent;
        to[i * kReadTile + j] = finite ? Entry<dtype>::widen(entry) : std::nan("");
      }
    }
  });
}

// Calls visit(i, j, C_ij, C_ji, task) for every i >= j.
template <class Visit>
void for_each_pair(Team& team, const MatrixView& moment, const Visit& visit) {
  const index_t n = moment.rows;
  const index_t tiles = ceil_div(n, kReadTile);
  team.parallel_for(tiles, [&](index_t tile, int) {
    std::vector<double> lower(position(kReadTile * kReadTile));
    std::vector<double> upper(lower.size());
    const index_t row = tile * kReadTile;
    const index_t rows = std::min(kReadTile, n - row);
    for (index_t column = 0; column <= row; column += kReadTile) {
      const index_t columns = std::min(kReadTile, n - column);
      widen_tile(moment, row, rows, column, columns, lower.data());
      widen_tile(moment, column, columns, row, rows, upper.data());
      for (index_t i = 0; i < rows; ++i) {
        for (index_t j = 0; j < std::min(columns, row + i - column + 1); ++j) {
          visit(row + i, column + j, lower[position(i * kReadTile + j)], upper[position(j * kReadTile + i)], tile);
        }
      }
    }
  });
}

// A = L L^T in place, lower triangle, by blocks: the block on the diagonal, the panel below it, and its product taken
// from all that is to the right. Returns the columns finished, n on success.
index_t cholesky(Team& team, index_t n, double* a, index_t ld) {
  const index_t block = factor_block(n);
  for (index_t k = 0; k < n; k += block) {
    const index_t width = std::min(block, n - k);
    double* const corner = a + k + k * ld;
    const index_t finished = linalg::cholesky_lower(width, corner, ld);
    if (finished < width) return k + finished;
    const index_t after = k + width;
    const index_t tiles = ceil_div(n - after, block);
    team.parallel_for(tiles, [&](index_t tile, int) {
      const index_t row = after + tile * block;
      linalg::divide_by_lower_transposed(std::min(block, n - row), width, corner, ld, a + row + k * ld, ld);
    });
    team.parallel_for(lower_tiles(tiles), [&](index_t task, int) {
      const auto [row, column] = lower_tile(task, tiles);
      const index_t i = after + row * block;
      const index_t j = after + column * block;
      const index_t height = std::min(block, n - i);
      double* const target = a + i + j * ld;
      if (i == j) {
        linalg::syrk_lower(height, width, -1.0, a + i + k * ld, ld, 1.0, target, ld);
      } else {
        linalg::gemm(false, true, height, std::min(block, n - j), width, -1.0, a + i + k * ld, ld, a + j + k * ld, ld,
                     1.0, target, ld);
      }
    });
    team.check_interrupt();
  }
  return n;
}

// L becomes X = L^-1, block row after block row: X_ij = L_ii^-1 (I - sum over j <= k < i of L_ik X_kj).
void invert_lower(Team& team, index_t n, double* a, index_t ld) {
  const index_t block = factor_block(n);
  Buffer<double> panel(block, n, "a block row of the factor of the second moment");
  for (index_t i = 0; i < n; i += block) {
    const index_t height = std::min(block, n - i);
    double* const l = panel.get();  // block row i of L
    const index_t tiles = i / block + 1;
    team.parallel_for(tiles, [&](index_t tile, int) {
      for (index_t column = tile * block; column < std::min((tile + 1) * block, i + height); ++column) {
        std::copy_n(a + i + column * ld, height, l + column * height);
      }
    });
    team.parallel_for(tiles, [&](index_t tile, int) {
      const index_t j = tile * block;
      const index_t width = std::min(block, n - j);
      double* const target = a + i + j * ld;
      if (i == j) {
        for (index_t c = 0; c < width; ++c) {
          std::fill_n(target + c * ld, height, 0.0);
          target[c + c * ld] = 1;
        }
      } else {
        linalg::gemm(false, false, height, width, i - j, -1.0, l + j * height, height, a + j + j * ld, ld, 0.0, target,
                     ld);
      }
      linalg::solve_lower(height, width, l + i * height, height, target, ld);
    });
  }
}

// U_ij = X_(n-1-i)(n-1-j) in single precision, row-major, from the column-major lower triangle X.
void reverse(Team& team, index_t n, const double* x, index_t ld, float* factor) {
  team.parallel_for(ceil_div(n, kReadTile), [&](index_t tile, int) {
    const index_t first = tile * kReadTile;
    const index_t last = std::min(first + kReadTile, n);
    for (index_t i = first; i < last; ++i) std::fill_n(factor + i * n, i, 0.0F);
    for (index_t column = first; column < n; column += kReadTile) {
      for (index_t j = column; j < std::min(column + kReadTile, n); ++j) {
        const double* const from = x + (n - 1 - j) * ld;
        for (index_t i = first; i < std::min(last, j + 1); ++i) {
          factor[i * n + j] = static_cast<float>(from[n - 1 - i]);
        }
      }
    }
  });
}

// product (n x width) = symmetric (n x n) * vectors (n x width), all row-major.
void multiply_symmetric(Team& team, index_t n, const float* symmetric, index_t width, const float* vectors,
                        float* product) {
  constexpr index_t kRows = 256;
  team.parallel_for(ceil_div(n, kRows), [&](index_t tile, int) {
    const index_t row = tile * kRows;
    linalg::gemm(false, false, width, std::min(kRows, n - row), n, 1.0F, vectors, width, symmetric + row * n, n, 0.0F,
                 product + row * width, width);
  });
}

// A^T B of n x width matrices, row-major, upper triangle, in double precision.
SmallMatrix inner_products(Team& team, index_t n, index_t width, const float* a, const float* b) {
  constexpr index_t kRows = 256;
  const index_t tiles = ceil_div(n, kRows);
  std::vector<SmallMatrix> shares(position(tiles), SmallMatrix(width, width));
  team.parallel_for(tiles, [&](index_t tile, int) {
    const index_t first = tile * kRows * width;
    const index_t last = std::min((tile + 1) * kRows, n) * width;
    const std::vector<double> left(a + first, a + last);
    const std::vector<double> right(b + first, b + last);
    linalg::gemm(false, true, width, width, (last - first) / width, 1.0, left.data(), width, right.data(), width, 0.0,
                 shares[position(tile)].data(), width);
  });
  SmallMatrix total(width, width);
  for (const SmallMatrix& share : shares) {
    for (index_t j = 0; j < width; ++j) {
      for (index_t i = 0; i <= j; ++i) total(i, j) += share(i, j);
    }
  }
  return total;
}

// V = V R^-1 for the upper triangular R = chol(products) of V's first columns, as many as are independent; the others
// become zero. Returns how many.
index_t divide_by_root(Team& team, index_t n, index_t width, SmallMatrix products, float* vectors) {
  // What single precision has left of a pivot.
  constexpr double kLeastPivot = 1e-5;
  double largest = 0;
  for (index_t j = 0; j < width; ++j) largest = std::max(largest, products(j, j));
  const std::vector<double> floors(position(width), kLeastPivot * largest);
  const index_t count = linalg::cholesky_upper(products, floors);
  SmallMatrix root(count, count);
  for (index_t j = 0; j < count; ++j) {
    for (index_t i = 0; i <= j; ++i) root(i, j) = products(i, j);
  }
  const SmallMatrix inverse = linalg::upper_inverse(root);
  constexpr index_t kRows = 256;
  team.parallel_for(ceil_div(n, kRows), [&](index_t tile, int) {
    float* const v = vectors + tile * kRows * width;
    const index_t rows = std::min(kRows, n - tile * kRows);
    const std::vector<double> old(v, v + rows * width);
    std::vector<double> divided(old.size());
    if (count > 0) {
      linalg::gemm(true, false, count, rows, count, 1.0, inverse.data(), count, old.data(), width, 0.0, divided.data(),
                   width);
    }
    std::ranges::transform(divided, v, [](double entry) { return static_cast<float>(entry); });
  });
  return count;
}

}  // namespace

MomentFacts examine_moment(Team& team, const MatrixView& moment, double* diagonal) {
  const index_t n = moment.rows;
  std::vector<MomentFacts> facts(position(ceil_div(n, kReadTile)));
  const auto see = [](MomentFacts& fact, index_t row, index_t col) {
    ++fact.nonfinite_count;
    if (fact.first_nonfinite_row >= 0 &&
        std::pair(fact.first_nonfinite_row, fact.first_nonfinite_col) < std::pair(row, col)) {
      return;
    }
    fact.first_nonfinite_row = row;
    fact.first_nonfinite_col = col;
  };
  for_each_pair(team, moment, [&](index_t i, index_t j, double below, double above, index_t tile) {
    MomentFacts& fact = facts[position(tile)];
    if (i == j) diagonal[i] = below;
    if (std::isnan(below)) see(fact, i, j);
    if (i != j && std::isnan(above)) see(fact, j, i);
    fact.asymmetry = std::max(fact.asymmetry, std::abs(below - above));
  });
  std::vector<double> roots(position(n));
  for (index_t i = 0; i < n; ++i) roots[position(i)] = std::sqrt(diagonal[i]);
  for_each_pair(team, moment, [&](index_t i, index_t j, double below, double, index_t tile) {
    MomentFacts& fact = facts[position(tile)];
    if (i != j) fact.asymmetry = std::max(fact.asymmetry, std::abs(below) - roots[position(i)] * roots[position(j)]);
  });
  MomentFacts total;
  for (const MomentFacts& fact : facts) {
    total.asymmetry = std::max(total.asymmetry, fact.asymmetry);
    if (fact.nonfinite_count == 0) continue;
    const index_t before = total.nonfinite_count;
    see(total, fact.first_nonfinite_row, fact.first_nonfinite_col);
    total.nonfinite_count = before + fact.nonfinite_count;
  }
  return total;
}

index_t inverse_factor(Team& team, const MatrixView& moment, double unit, const double* diagonal, float* factor) {
  const index_t n = moment.rows;
  const index_t ld = padded_leading_dimension(n);
  Buffer<double> reversed(ld, n, "the factor of the second moment");
  for_each_pair(team, moment, [&](index_t i, index_t j, double below, double above, index_t) {
    // Entry (n-1-j, n-1-i) of the reversed matrix lies in its lower triangle.
    reversed.get()[(n - 1 - j) + (n - 1 - i) * ld] = i == j ? diagonal[i] : (below / unit + above / unit) / 2;
  });
  const index_t finished = cholesky(team, n, reversed.get(), ld);
  if (finished < n) return n - 1 - finished;
  invert_lower(team, n, reversed.get(), ld);
  reverse(team, n, reversed.get(), ld, factor);
  return -1;
}

index_t positive_inverse(Team& team, index_t n, const double* h, double* inverse) {
  const index_t ld = padded_leading_dimension(n);
  Buffer<double> lower(ld, n, "the inverse of the second moment");
  double* const x = lower.get();
  for (index_t j = 0; j < n; ++j) {
    for (index_t i = j; i < n; ++i) x[i + j * ld] = h[i * n + j];
  }
  const index_t finished = cholesky(team, n, x, ld);
  if (finished < n) return finished;
  invert_lower(team, n, x, ld);
  for (index_t j = 1; j < n; ++j) std::fill_n(x + j * ld, j, 0.0);
  // Tile (i, j), i >= j, of X^T X: the rows of X before the tile's are zero in its columns.
  const index_t block = factor_block(n);
  const index_t tiles = ceil_div(n, block);
  team.parallel_for(lower_tiles(tiles), [&](index_t task, int) {
    const auto [row, column] = lower_tile(task, tiles);
    const index_t i = row * block;
    const index_t j = column * block;
    const index_t height = std::min(block, n - i);
    const index_t width = std::min(block, n - j);
    linalg::gemm(true, false, height, width, n - i, 1.0, x + i + i * ld, ld, x + i + j * ld, ld, 0.0,
                 inverse + i + j * n, n);
  });
  for (index_t j = 0; j < n; ++j) {
    for (index_t i = 0; i < j; ++i) inverse[i + j * n] = inverse[j + i * n];
  }
  return -1;
}

void removal_costs(Team& team, index_t count, index_t size, const double* b, const double* g, double* costs) {
  const index_t square = size * size;
  team.parallel_for(count, [&](index_t group, int) {
    std::vector<double> root(b + group * square, b + (group + 1) * square);
    std::vector<double> rest(g + group * square, g + (group + 1) * square);
    if (linalg::cholesky_lower(size, root.data(), size) < size) {
      costs[group] = std::nan("");
      return;
    }
    // tr (L L^T)^-1 G = tr L^-1 (G L^-T)
    linalg::divide_by_lower_transposed(size, size, root.data(), size, rest.data(), size);
    linalg::solve_lower(size, size, root.data(), size, rest.data(), size);
    double trace = 0;
    for (index_t i = 0; i < size; ++i) trace += rest[position(i * size + i)];
    costs[group] = trace;
  });
}

void correlations(Team& team, const MatrixView& moment, const double* roots, float* result) {
  const index_t n = moment.rows;
  for_each_pair(team, moment, [&](index_t i, index_t j, double below, double above, index_t) {
    const double both = i == j ? 1 : (below / 2 + above / 2) * roots[i] * roots[j];
    result[i * n + j] = static_cast<float>(both);
    result[j * n + i] = static_cast<float>(both);
  });
}

index_t leading_part(Team& team, index_t n, const float* symmetric, index_t width, const std::int8_t* probes,
                     float* basis) {
  Buffer<float> vectors(n, width, "the leading directions of the second moment");
  Buffer<float> image(n, width, "the leading directions of the second moment");
  for (index_t i = 0; i < n * width; ++i) image.get()[i] = probes[i];
  multiply_symmetric(team, n, symmetric, width, image.get(), vectors.get());
  divide_by_root(team, n, width, inner_products(team, n, width, vectors.get(), vectors.get()), vectors.get());
  multiply_symmetric(team, n, symmetric, width, vectors.get(), basis);
  return divide_by_root(team, n, width, inner_products(team, n, width, vectors.get(), basis), basis);
}

}  // namespace mpfast::cpu
