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
#include <utility>
#include <vector>

#include "core/changed.hpp"
#include "core/small_matrix.hpp"
#include "linalg/backend.hpp"
#include "linalg/band_spectrum.hpp"
#include "linalg/orthonormaliser.hpp"
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

  BlockLanczos(B& backend, index_t width, ProbeKey key)
      : backend_(&backend), width_(width), key_(key), orthonormaliser_(backend, width, key) {
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
    orthonormaliser_.project_on_last(v, z, c);
    const bool room = size + width_ <= backend_->dim();
    SmallMatrix coupling = room ? orthonormaliser_.orthonormalise(v, z, c) : orthonormaliser_.remainder(v, z, c);
    symmetrise_last_block(c);
    columns_.push_back(std::move(c));
    couplings_.push_back(std::move(coupling));
    ++steps_;
    if (steps_ == max_steps() || orthonormaliser_.closed()) exhausted_ = true;
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
      const SmallMatrix r = orthonormaliser_.cholesky_of(x);
      const SmallMatrix inverse = upper_inverse(r);
      backend_->transform(x, inverse);
      backend_->transform(z, inverse);
      r1_ = upper_product(r, r1_);
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

  B* backend_;
  index_t width_;
  ProbeKey key_;
  Orthonormaliser<B> orthonormaliser_;
  Vectors basis_{};
  index_t capacity_ = 0;
  index_t steps_ = 0;
  index_t zero_coordinates_ = 0;
  OperatorStats stats_;
  bool product_ready_ = false;
  bool exhausted_ = false;
  SmallMatrix r1_;
  std::vector<SmallMatrix> columns_;        // T, one block column per step, down to its diagonal block
  std::vector<SmallMatrix> couplings_;      // B_1, B_2, ...
  std::shared_ptr<const RitzValues> ritz_;  // the last that was asked for
};

}  // namespace mpfast::linalg
