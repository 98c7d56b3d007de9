// A block of vectors made orthonormal against a basis.
//
// Of what a projection has left,
//     Z = V C + Q B,     V^T V = I,     [V Q]^T [V Q] = I
// with
//     V    p x n   the basis;     Z    p x b   the block, which Q replaces
//     C    n x b   coefficients of the block in V; every projection adds to them
//     B    b x b   upper triangular
//
// Cost: 4 p b n flops for the two projections. "Twice is enough", and the first time it is the last two blocks of V
// alone, see block_lanczos.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/small_matrix.hpp"
#include "linalg/backend.hpp"
#include "linalg/triangular.hpp"

namespace mpfast::linalg {

template <Backend B>
class Orthonormaliser {
 public:
  using View = typename B::View;

  Orthonormaliser(B& backend, index_t width, ProbeKey key) : backend_(&backend), width_(width), key_(key) {}

  // Whether nothing but rounding was left of a block, or no direction is free for what replaces it.
  bool closed() const { return closed_; }

  // The Cholesky factor of X^T X, upper triangular, for vectors that must be independent.
  SmallMatrix cholesky_of(View x) const {
    SmallMatrix g = gram_of(x);
    if (cholesky_upper(g, zeros()) < width_) throw std::runtime_error("the probe block is rank deficient");
    return g;
  }

  // First projection, on the blocks that A Q_k has more than rounding in.
  void project_on_last(View v, View z, SmallMatrix& c) const {
    const index_t count = std::min(v.count, 2 * width_);
    const index_t first = v.count - count;
    const View last = v.slice(first, count);
    SmallMatrix coefficients(count, width_);
    backend_->inner(last, z, coefficients);
    backend_->subtract(last, coefficients, z);
    for (index_t j = 0; j < width_; ++j) std::ranges::copy(coefficients.column(j), c.column(j).begin() + first);
  }

  // B, with Q in the place of Z: Cholesky QR and projection in turn, each twice. The second projection comes after a
  // division by the first factor, which may have blown up what rounding had left of V in the small columns of Z. Where
  // little was left of a column one on all of V comes before, too, and another one behind where the second took most of
  // it. Directions that are nothing but rounding (the Krylov space has closed there) are replaced by fresh random ones
  // with a zero coupling, so that the basis stays full without inventing spectrum.
  SmallMatrix orthonormalise(View v, View z, SmallMatrix& c) {
    SmallMatrix first(width_, width_);
    std::vector<double> noise;
    const auto has_full_rank = [&] {
      noise = rounding_of_products(c, first = gram_of(z));
      return cholesky_upper(first, squares(noise)) == width_;
    };
    if (!has_full_rank() || has_cancelled(c, first)) {
      project_again(v, z, identity(width_), c);
      if (!has_full_rank()) return orthonormalise_deficient(v, z, identity(width_), noise);
    }
    backend_->transform(z, upper_inverse(first));
    project_again(v, z, first, c);
    for (index_t j = 0; j < width_; ++j) noise[j] /= first(j, j);
    SmallMatrix second = gram_of(z);
    if (cholesky_upper(second, squares(noise)) < width_) return orthonormalise_deficient(v, z, first, noise);
    backend_->transform(z, upper_inverse(second));
    SmallMatrix coupling = upper_product(second, first);
    return is_near_identity(second) ? coupling : orthonormalise_again(v, z, coupling, c);
  }

  // There is no room for another block. What is left over is measured but never used.
  SmallMatrix remainder(View v, View z, SmallMatrix& c) const {
    project_again(v, z, identity(width_), c);
    const SmallMatrix g = gram_of(z);
    SmallMatrix norms(width_, width_);
    for (index_t j = 0; j < width_; ++j) norms(j, j) = std::sqrt(std::max(g(j, j), 0.0));
    return norms;
  }

 private:
  // Second projection: takes out of Z what rounding left of it in V. `b` is what Z has been divided by since the first.
  void project_again(View v, View z, const SmallMatrix& b, SmallMatrix& c) const {
    SmallMatrix correction(c.rows(), c.cols());
    backend_->inner(v, z, correction);
    backend_->subtract(v, correction, z);
    for (index_t j = 0; j < width_; ++j) {
      const std::span<double> total = c.column(j);
      for (index_t k = 0; k <= j; ++k) {
        const std::span<const double> more = std::as_const(correction).column(k);
        const double factor = b(k, j);
        for (std::size_t i = 0; i < total.size(); ++i) total[i] += more[i] * factor;
      }
    }
  }

  std::vector<double> zeros() const { return std::vector<double>(static_cast<std::size_t>(width_), 0.0); }

  // What a projection has taken most of has rounding left of it beside what is new.
  SmallMatrix orthonormalise_again(View v, View z, const SmallMatrix& before, SmallMatrix& c) {
    project_again(v, z, before, c);
    SmallMatrix third = gram_of(z);
    if (cholesky_upper(third, zeros()) < width_) return orthonormalise_deficient(v, z, before, zeros());
    backend_->transform(z, upper_inverse(third));
    return upper_product(third, before);
  }

  static bool is_near_identity(const SmallMatrix& factor) {
    constexpr double kNear = 0.7;
    for (index_t j = 0; j < factor.cols(); ++j) {
      if (factor(j, j) < kNear) return false;
    }
    return true;
  }

  SmallMatrix gram_of(View z) const {
    SmallMatrix g(width_, width_);
    backend_->gram(z, g);
    return g;
  }

  static std::vector<double> squares(std::vector<double> numbers) {
    for (double& number : numbers) number *= number;
    return numbers;
  }

  // Whether the first projection has left so little of a column (a pivot of the Cholesky factor says how much of it is
  // new) that the rounding which A Q_k has in all of V is no longer small beside it.
  bool has_cancelled(const SmallMatrix& c, const SmallMatrix& factor) const {
    constexpr double kLeft = 0.01;
    for (index_t j = 0; j < width_; ++j) {
      double squared = 0;
      for (const double entry : c.column(j)) squared += entry * entry;
      for (const double entry : factor.column(j)) squared += entry * entry;
      if (factor(j, j) < kLeft * std::sqrt(squared)) return true;
    }
    return false;
  }

  // What rounding may leave of every column of A Q_k, whose norms follow from their coefficients in V and the Gram
  // matrix of what is left. fp64 can afford a wide margin below the largest product of all. The bulk of an fp32 matrix
  // may itself be that far below its leading value, so there the margin is below each column's own product.
  std::vector<double> rounding_of_products(const SmallMatrix& c, const SmallMatrix& g) {
    constexpr bool kDouble = std::is_same_v<typename B::Real, double>;
    constexpr double kNoise = kDouble ? 1e-12 : 8 * std::numeric_limits<float>::epsilon();
    std::vector<double> noise = zeros();
    for (index_t j = 0; j < width_; ++j) {
      double squared = g(j, j);
      for (index_t i = 0; i < c.rows(); ++i) squared += c(i, j) * c(i, j);
      const double product = std::sqrt(squared);
      largest_ = std::max(largest_, product);
      noise[j] = kNoise * product;
    }
    if (kDouble) std::fill(noise.begin(), noise.end(), kNoise * largest_);
    return noise;
  }

  // One column at a time, for low-rank and tiny matrices.
  SmallMatrix orthonormalise_deficient(View v, View z, const SmallMatrix& before, std::span<const double> noise) {
    SmallMatrix b(width_, width_);
    index_t kept = 0;
    for (index_t j = 0; j < width_; ++j) {
      View column = z.slice(j, 1);
      double norm = project_column(z, j, b.column(j));
      if (norm > noise[j] && norm > 0) {
        b(j, j) = norm;
        ++kept;
      } else {
        std::ranges::fill(b.column(j), 0.0);
        norm = replace_column(v, z, j);
        if (norm == 0) {
          closed_ = true;
          return b;
        }
      }
      const double scale = 1 / norm;
      backend_->transform(column, ConstSmallView(&scale, 1, 1));
    }
    if (kept == 0) closed_ = true;
    // The block is projected once more against V: normalising a small column has magnified its rounding.
    SmallMatrix coefficients(v.count, width_);
    backend_->inner(v, z, coefficients);
    backend_->subtract(v, coefficients, z);
    const SmallMatrix r = cholesky_of(z);
    backend_->transform(z, upper_inverse(r));
    return upper_product(upper_product(r, b), before);
  }

  double squared_norm(View column) const {
    double squared = 0;
    backend_->gram(column, SmallView(&squared, 1, 1));
    return squared;
  }

  // Takes the columns before j out of column j, twice; adds the coefficients to `c`; returns the norm that is left.
  double project_column(View z, index_t j, std::span<double> c) const {
    View column = z.slice(j, 1);
    SmallMatrix coefficients(j, 1);
    for (int pass = 0; pass < 2 && j > 0; ++pass) {
      backend_->inner(z.slice(0, j), column, coefficients);
      backend_->subtract(z.slice(0, j), coefficients, column);
      for (index_t i = 0; i < j; ++i) c[i] += coefficients(i, 0);
    }
    return std::sqrt(std::max(squared_norm(column), 0.0));
  }

  double replace_column(View v, View z, index_t j) {
    View column = z.slice(j, 1);
    backend_->fill_probes(column, key_, next_column_++);
    const double before = squared_norm(column);
    SmallMatrix coefficients(v.count, 1);
    for (int pass = 0; pass < 2; ++pass) {
      backend_->inner(v, column, coefficients);
      backend_->subtract(v, coefficients, column);
    }
    std::vector<double> ignored = zeros();
    const double norm = project_column(z, j, ignored);
    return norm * norm > 1e-8 * before ? norm : 0.0;
  }

  B* backend_;
  index_t width_;
  ProbeKey key_;
  index_t next_column_ = 1 << 20;  // columns of replacement vectors: far from those of the probes
  bool closed_ = false;
  double largest_ = 0;  // largest norm of a column of Z seen, before any projection
};

}  // namespace mpfast::linalg
