// Block Lanczos with full reorthogonalisation.
//
// After k steps
//     A V_k = V_k T_k + Q_{k+1} B_k E_k^T,     V_k^T V_k = I,     X = Q_1 R_1
// with
//     A    p x p    the backend's operator
//     X    p x b    the probes;               R_1  b x b  upper triangular
//     Q_j  p x b    block j of the basis;     V_k = [Q_1 ... Q_k],  p x bk
//     T_k  bk x bk  = V_k^T A V_k, fp64;      B_k  b x b  upper triangular;     E_k  the last b columns of I
//
// Cost of step j: one pass over W, and 4 p b (bj) flops to reorthogonalise. "Twice is enough", and the first time it is
// the last two blocks alone: A Q_j has nothing but rounding in the others, which the second time takes out of all.
// Ritz pairs (theta, V s) of T are lower bounds of the leading eigenvalues of A with residual |B_k s_last|.
//
// Coordinates on which A vanishes (zero columns of W) are taken out of the problem at the first step: the probes are
// set to zero there, so that the basis lives on the rest and no step is spent on a known atom at zero.
#pragma once

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <memory>
#include <span>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/changed.hpp"
#include "core/small_matrix.hpp"
#include "linalg/backend.hpp"
#include "linalg/band_spectrum.hpp"
#include "linalg/small_eigen.hpp"
#include "linalg/triangular.hpp"

namespace mpfast::linalg {

// Ritz values of T, descending, all or the leading ones, and what the quadrature needs to know of each.
struct RitzValues {
  std::vector<double> theta;
  std::vector<double> residual;  // |A y - theta y|
  SmallMatrix weight;            // squared coefficient of probe c, of b, on Ritz vector i
  SmallMatrix vectors;           // Ritz vectors in the basis, one per column, in the order of theta

  index_t size() const { return vectors.cols(); }
  index_t width() const { return weight.cols(); }  // b
};

template <Backend B>
class BlockLanczos {
 public:
  using Vectors = typename B::Vectors;
  using View = typename B::View;

  BlockLanczos(B& backend, index_t width, ProbeKey key) : backend_(&backend), width_(width), key_(key) {
    if (width < 1 || width > backend.dim())
      throw std::invalid_argument("block width must be between 1 and min(W.shape)");
  }

  index_t steps() const { return steps_; }
  index_t width() const { return width_; }
  // Number of coordinates on which A vanishes; known after the first step.
  index_t zero_coordinates() const { return zero_coordinates_; }
  const OperatorStats& stats() const { return stats_; }
  // The Krylov space has become invariant, or fills everything: further steps add nothing.
  bool exhausted() const { return exhausted_; }
  // The most steps the space has room for.
  index_t max_steps() const { return backend_->dim() / width_; }

  // Takes up to `count` further steps; stops early when exhausted.
  void advance(index_t count) {
    const index_t target = steps_ + std::min(count, max_steps());
    for (prepare(target); can_step(target); step()) {
      if (!has_product()) take_product(multiplied());
    }
  }

  // The parts of `advance`, for whoever forms the products of several runs in one pass: as long as a run can take a
  // step, it needs the product of its operand, unless it has it already, and takes the step.

  // Makes room for the steps up to `target`. An interrupted start is simply made again.
  void prepare(index_t target) {
    target = std::min(target, max_steps());
    if (target <= steps_ || exhausted_) return;
    reserve(target + 1);
    if (steps_ == 0 && !product_ready_) backend_->fill_probes(operand(), key_, 0);
  }

  bool can_step(index_t target) const { return steps_ < std::min(target, max_steps()) && !exhausted_; }
  bool has_product() const { return product_ready_; }
  View operand() { return basis_.slice(steps_ * width_, width_); }
  View product() { return basis_.slice((steps_ + 1) * width_, width_); }

  // Once `product()` holds A times the operand; `stats` are those of a first pass.
  void take_product(const OperatorStats& stats) {
    if (steps_ == 0) start(stats);
    product_ready_ = true;
  }

  void step() {
    if (exhausted_) return;  // what the first pass has seen leaves nothing to do
    const index_t size = (steps_ + 1) * width_;
    const View v = basis_.slice(0, size);
    const View z = product();
    product_ready_ = false;

    SmallMatrix c(size, width_);
    project_on_last(v, z, c);
    const bool room = size + width_ <= backend_->dim();
    SmallMatrix coupling = room ? orthonormalise(v, z, c) : remainder(v, z, c);
    symmetrise_last_block(c);
    columns_.push_back(std::move(c));
    couplings_.push_back(std::move(coupling));
    ++steps_;
    if (steps_ == max_steps()) exhausted_ = true;
  }

  // The leading `count` pairs, or a few more or all, of the Ritz decomposition after `steps` (at most steps()) of the
  // run: earlier states are leading blocks of T. The last one is kept, for whoever wants the vectors after having seen
  // the values.
  std::shared_ptr<const RitzValues> ritz(index_t steps, index_t count, const Poll& poll) {
    if (steps < 1 || steps > steps_) throw std::invalid_argument("no Ritz values for that many steps");
    const index_t size = steps * width_;
    count = std::clamp<index_t>(count, 1, size);
    if (ritz_ == nullptr || ritz_->vectors.rows() != size || ritz_->size() < count) {
      ritz_ = std::make_shared<const RitzValues>(decompose(steps, count, poll));
    }
    return ritz_;
  }

  // All of them.
  std::shared_ptr<const RitzValues> ritz(index_t steps, const Poll& poll) {
    return ritz(steps, std::numeric_limits<index_t>::max(), poll);
  }

  // T without what rounding has left outside of its band: what a glimpse of its values takes.
  SymmetricBand band() const {
    if (steps_ < 1) throw std::invalid_argument("no Ritz values before the first step");
    SymmetricBand out(steps_ * width_, width_);
    for (index_t j = 0; j < out.order; ++j) {
      for (index_t i = 0; i <= std::min(width_, out.order - 1 - j); ++i) out.at(i, j) = t(j + i, j);
    }
    return out;
  }

  // The residual of the Ritz pair next to `theta`, by the band.
  double residual_near(double theta) const {
    return coupling_norm(couplings_[steps_ - 1], end_of_eigenvector(band(), theta, width_));
  }

  // out (vectors of length p) = V times `coefficients`, whose rows say how many vectors of V.
  void combine(ConstSmallView coefficients, View out) const {
    assert(coefficients.cols() == out.count);
    backend_->combine(basis_.slice(0, coefficients.rows()), coefficients, out);
  }

 private:
  // If W as scaled has a larger trace of A than this, products with it may overflow.
  static constexpr double kLargestTrace = sizeof(typename B::Real) == sizeof(double) ? 1e290 : 1e30;

  RitzValues decompose(index_t steps, index_t count, const Poll& poll) const {
    const index_t size = steps * width_;
    // Where half are wanted, all cost no more.
    if (2 * count > size) count = size;
    SmallMatrix ascending(size, size);
    for (index_t j = 0; j < size; ++j) {
      for (index_t i = 0; i < size; ++i) ascending(i, j) = t(i, j);
    }
    // The first pass saw finite entries, of a trace that cannot overflow. LAPACK need not come to an end with others.
    if (!std::ranges::all_of(ascending.view().entries(), [](double entry) { return std::isfinite(entry); })) {
      throw MatrixChanged();
    }
    const std::vector<double> values =
        count == size ? symmetric_eigen(ascending, poll) : largest_symmetric_eigen(ascending, count, poll);
    RitzValues out;
    out.weight = SmallMatrix(count, width_);
    out.vectors = SmallMatrix(size, count);
    for (index_t i = 0; i < count; ++i) {
      const std::span<const double> s = std::as_const(ascending).column(count - 1 - i);
      std::copy(s.begin(), s.end(), out.vectors.column(i).begin());
      out.theta.push_back(std::max(values[count - 1 - i], 0.0));
      out.residual.push_back(coupling_norm(couplings_[steps - 1], s.last(width_)));
      for (index_t c = 0; c < width_; ++c) {
        double sum = 0;
        for (index_t r = 0; r <= c; ++r) sum += r1_(r, c) * s[r];
        out.weight(i, c) = sum * sum;
      }
    }
    return out;
  }

  // |B s|, B upper triangular.
  static double coupling_norm(const SmallMatrix& b, std::span<const double> s) {
    double squared = 0;
    for (index_t r = 0; r < b.rows(); ++r) {
      double sum = 0;
      for (index_t c = r; c < b.cols(); ++c) sum += b(r, c) * s[c];
      squared += sum * sum;
    }
    return std::sqrt(squared);
  }

  double t(index_t i, index_t j) const {
    // Column block j / b was stored when that step was taken, down to its own diagonal block.
    if (i > j) std::swap(i, j);
    const index_t block = j / width_;
    return columns_[block](i, j - block * width_);
  }

  // Basis memory grows geometrically; the vectors already there are copied by the backend.
  void reserve(index_t blocks) {
    if (blocks <= capacity_) return;
    const index_t wanted = std::min(std::max(blocks, capacity_ + capacity_ / 2), max_steps() + 1);
    Vectors larger = backend_->allocate(wanted * width_);
    // A product waits where a call was interrupted between two parts of a run.
    const index_t held = (steps_ + (product_ready_ ? 2 : 1)) * width_;
    if (steps_ > 0 || product_ready_) backend_->copy(basis_.slice(0, held), larger.slice(0, held));
    basis_ = std::move(larger);
    capacity_ = wanted;
  }

  // A times the operand, in one pass of its own.
  OperatorStats multiplied() {
    OperatorStats stats;
    backend_->apply(operand(), product(), steps_ == 0 ? &stats : nullptr);
    return stats;
  }

  // The first pass runs on the raw probes, so that what it learns (zero coordinates, finiteness) is known before
  // anything is orthonormalised; A Q_1 follows from A X by linearity.
  void start(const OperatorStats& stats) {
    const View x = operand();
    const View z = product();
    stats_ = stats;
    // The caller reports non-finite entries, and scales W when its trace is too large.
    if (stats_.nonfinite_count > 0 || !(stats_.trace < kLargestTrace)) {
      exhausted_ = true;
      return;
    }
    zero_coordinates_ = backend_->mask_zero_coordinates(z, x);
    if (backend_->dim() - zero_coordinates_ < 2 * width_) {
      // Nearly all coordinates are zeros, and too few are left for a block. They all stay; the run will find the space
      // closed.
      zero_coordinates_ = 0;
      backend_->fill_probes(x, key_, 0);
    }
    r1_ = identity(width_);
    for (int pass = 0; pass < 2; ++pass) {
      const SmallMatrix r = cholesky_of(x);
      const SmallMatrix inverse = upper_inverse(r);
      backend_->transform(x, inverse);
      backend_->transform(z, inverse);
      r1_ = upper_product(r, r1_);
    }
  }

  // First projection, on the blocks that A Q_k has more than rounding in.
  void project_on_last(View v, View z, SmallMatrix& c) const {
    const index_t count = std::min(v.count, 2 * width_);
    const index_t first = v.count - count;
    const View last = basis_.slice(first, count);
    SmallMatrix coefficients(count, width_);
    backend_->inner(last, z, coefficients);
    backend_->subtract(last, coefficients, z);
    for (index_t j = 0; j < width_; ++j) std::ranges::copy(coefficients.column(j), c.column(j).begin() + first);
  }

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

  void symmetrise_last_block(SmallMatrix& c) const {
    const index_t first = c.rows() - width_;
    for (index_t j = 0; j < width_; ++j) {
      for (index_t i = 0; i < j; ++i) {
        double& upper = c(first + i, j);
        double& lower = c(first + j, i);
        upper = lower = 0.5 * (upper + lower);
      }
    }
  }

  // There is no room for another block. What is left over is measured but never used.
  SmallMatrix remainder(View v, View z, SmallMatrix& c) const {
    project_again(v, z, identity(width_), c);
    const SmallMatrix g = gram_of(z);
    SmallMatrix norms(width_, width_);
    for (index_t j = 0; j < width_; ++j) norms(j, j) = std::sqrt(std::max(g(j, j), 0.0));
    return norms;
  }

  SmallMatrix cholesky_of(View x) const {
    SmallMatrix g = gram_of(x);
    if (cholesky_upper(g, zeros()) < width_) throw std::runtime_error("the probe block is rank deficient");
    return g;
  }

  std::vector<double> zeros() const { return std::vector<double>(static_cast<std::size_t>(width_), 0.0); }

  // Z = V C + Q B: Cholesky QR and projection in turn, each twice. The second projection comes after a division by the
  // first factor, which may have blown up what rounding had left of V in the small columns of Z. Where little was left
  // of a column one on all of V comes before, too, and another one behind where the second took most of it. Directions
  // that are nothing but rounding (the Krylov space has closed there) are replaced by fresh random ones with a zero
  // coupling, so that the basis stays full without inventing spectrum.
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
          exhausted_ = true;
          return b;
        }
      }
      const double scale = 1 / norm;
      backend_->transform(column, ConstSmallView(&scale, 1, 1));
    }
    if (kept == 0) exhausted_ = true;
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
  Vectors basis_{};
  index_t capacity_ = 0;
  index_t steps_ = 0;
  index_t zero_coordinates_ = 0;
  index_t next_column_ = 1 << 20;  // columns of replacement vectors: far from those of the probes
  OperatorStats stats_;
  bool product_ready_ = false;
  bool exhausted_ = false;
  double largest_ = 0;  // largest norm of a column of A Q_j seen
  SmallMatrix r1_;
  std::vector<SmallMatrix> columns_;        // T, one block column per step, down to its diagonal block
  std::vector<SmallMatrix> couplings_;      // B_1, B_2, ...
  std::shared_ptr<const RitzValues> ritz_;  // the last that was asked for
};

}  // namespace mpfast::linalg
