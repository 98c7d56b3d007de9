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
// Cost of step j: one pass over W, and 8 p b (bj) flops to reorthogonalise against the whole basis twice ("twice is
// enough"). Ritz pairs (theta, V s) of T are lower bounds of the leading eigenvalues of A with residual |B_k s_last|.
//
// Coordinates on which A vanishes (zero columns of W) are taken out of the problem at the first step: the probes are
// set to zero there, so that the basis lives on the rest and no step is spent on a known atom at zero.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <span>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "linalg/backend.hpp"
#include "linalg/small_eigen.hpp"
#include "linalg/triangular.hpp"

namespace mpfast::linalg {

// Ritz values of T, descending, and what the quadrature needs to know of each.
struct RitzValues {
  index_t size = 0;              // bk
  index_t width = 0;             // b
  std::vector<double> theta;     // size
  std::vector<double> residual;  // size: |A y - theta y|
  std::vector<double> weight;    // size x width, column-major: squared coefficient of probe c on Ritz vector i
  std::vector<double> vectors;   // size x size, column-major: Ritz vectors in the basis, in the order of theta
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
    const index_t target = std::min(steps_ + count, max_steps());
    if (count < 1 || exhausted_) return;
    reserve(target + 1);
    if (steps_ == 0) start();  // an interrupted start is simply made again
    while (steps_ < target && !exhausted_) step();
    if (steps_ == max_steps()) exhausted_ = true;
  }

  // The Ritz decomposition after `steps` (at most steps()) of the run: earlier states are leading blocks of T. The last
  // one is kept, for whoever wants the vectors after having seen the values.
  std::shared_ptr<const RitzValues> ritz(index_t steps, const Poll& poll) {
    if (steps < 1 || steps > steps_) throw std::invalid_argument("no Ritz values for that many steps");
    if (ritz_ == nullptr || ritz_->size != steps * width_) {
      ritz_ = std::make_shared<const RitzValues>(decompose(steps, poll));
    }
    return ritz_;
  }

  // out (count vectors of length p) = V times `coefficients`, as many columns; their rows say how many vectors of V.
  void combine(std::span<const double> coefficients, View out) const {
    const index_t rows = static_cast<index_t>(coefficients.size()) / out.count;
    backend_->combine(basis_.slice(0, rows), coefficients.data(), out);
  }

 private:
  // Of W as scaled, beyond which products of it may overflow.
  static constexpr double kLargestTrace = sizeof(typename B::Real) == sizeof(double) ? 1e290 : 1e30;

  static std::size_t at(index_t row, index_t col, index_t rows) { return static_cast<std::size_t>(col * rows + row); }

  RitzValues decompose(index_t steps, const Poll& poll) const {
    const index_t size = steps * width_;
    RitzValues out;
    out.size = size;
    out.width = width_;
    std::vector<double> matrix(static_cast<std::size_t>(size * size));
    for (index_t j = 0; j < size; ++j) {
      for (index_t i = 0; i < size; ++i) matrix[at(i, j, size)] = t(i, j);
    }
    std::vector<double> ascending;
    symmetric_eigen(size, matrix, ascending, poll);
    const std::vector<double>& last = couplings_[static_cast<std::size_t>(steps - 1)];
    out.theta.resize(static_cast<std::size_t>(size));
    out.residual.resize(static_cast<std::size_t>(size));
    out.weight.resize(static_cast<std::size_t>(size * width_));
    out.vectors.resize(static_cast<std::size_t>(size * size));
    for (index_t i = 0; i < size; ++i) {
      const double* s = &matrix[at(0, size - 1 - i, size)];
      std::copy_n(s, size, &out.vectors[at(0, i, size)]);
      out.theta[static_cast<std::size_t>(i)] = std::max(ascending[static_cast<std::size_t>(size - 1 - i)], 0.0);
      double squared = 0;
      for (index_t r = 0; r < width_; ++r) {
        double sum = 0;
        for (index_t c = r; c < width_; ++c) sum += last[at(r, c, width_)] * s[size - width_ + c];
        squared += sum * sum;
      }
      out.residual[static_cast<std::size_t>(i)] = std::sqrt(squared);
      for (index_t c = 0; c < width_; ++c) {
        double sum = 0;
        for (index_t r = 0; r <= c; ++r) sum += r1_[at(r, c, width_)] * s[r];
        out.weight[at(i, c, size)] = sum * sum;
      }
    }
    return out;
  }

  double t(index_t i, index_t j) const {
    // Column block j / b was stored when that step was taken, down to its own diagonal block.
    if (i > j) std::swap(i, j);
    const index_t block = j / width_;
    return columns_[static_cast<std::size_t>(block)][at(i, j - block * width_, (block + 1) * width_)];
  }

  // Basis memory grows geometrically; the vectors already there are copied by the backend.
  void reserve(index_t blocks) {
    if (blocks <= capacity_) return;
    const index_t wanted = std::min(std::max(blocks, capacity_ + capacity_ / 2), max_steps() + 1);
    Vectors larger = backend_->allocate(wanted * width_);
    if (steps_ > 0) backend_->copy(basis_.slice(0, (steps_ + 1) * width_), larger.slice(0, (steps_ + 1) * width_));
    basis_ = std::move(larger);
    capacity_ = wanted;
  }

  // The first pass runs on the raw probes, so that what it learns (zero coordinates, finiteness) is known before
  // anything is orthonormalised; A Q_1 follows from A X by linearity.
  void start() {
    View x = basis_.slice(0, width_);
    View z = basis_.slice(width_, width_);
    backend_->fill_probes(x, key_, 0);
    backend_->apply(x, z, &stats_);
    // The caller reports the one, and scales W for the other.
    if (stats_.nonfinite_count > 0 || !(stats_.trace < kLargestTrace)) {
      exhausted_ = true;
      return;
    }
    zero_coordinates_ = backend_->mask_zero_coordinates(z, x);
    if (backend_->dim() - zero_coordinates_ < 2 * width_) {
      // Hardly anything but zeros: too little is left for a block. Keep them; the run will find the space closed.
      zero_coordinates_ = 0;
      backend_->fill_probes(x, key_, 0);
    }
    r1_.assign(static_cast<std::size_t>(width_ * width_), 0.0);
    std::vector<double> inverse(r1_.size());
    identity(width_, r1_);
    for (int pass = 0; pass < 2; ++pass) {
      const std::vector<double> r = cholesky_of(x);
      upper_inverse(width_, r, inverse);
      backend_->transform(x, inverse.data());
      backend_->transform(z, inverse.data());
      r1_ = upper_product(width_, r, r1_);
    }
    first_product_ready_ = true;
  }

  void step() {
    const index_t size = (steps_ + 1) * width_;
    const View v = basis_.slice(0, size);
    View z = basis_.slice(size, width_);
    if (!first_product_ready_) backend_->apply(basis_.slice(steps_ * width_, width_), z, nullptr);
    first_product_ready_ = false;

    std::vector<double> c(static_cast<std::size_t>(size * width_));
    backend_->inner(v, z, c.data());
    backend_->subtract(v, c.data(), z);
    const bool room = size + width_ <= backend_->dim();
    std::vector<double> coupling = room ? orthonormalise(v, z, c) : remainder(v, z, c);
    symmetrise_last_block(size, c);
    columns_.push_back(std::move(c));
    couplings_.push_back(std::move(coupling));
    ++steps_;
  }

  // Second projection: takes out of Z what rounding left of it in V. `b` is what Z has been divided by since the first.
  void project_again(View v, View z, const std::vector<double>& b, std::vector<double>& c) const {
    const index_t size = v.count;
    std::vector<double> correction(c.size());
    backend_->inner(v, z, correction.data());
    backend_->subtract(v, correction.data(), z);
    for (index_t j = 0; j < width_; ++j) {
      for (index_t k = 0; k <= j; ++k) {
        const double factor = b[at(k, j, width_)];
        for (index_t i = 0; i < size; ++i) c[at(i, j, size)] += correction[at(i, k, size)] * factor;
      }
    }
  }

  void symmetrise_last_block(index_t size, std::vector<double>& c) const {
    for (index_t j = 0; j < width_; ++j) {
      for (index_t i = 0; i < j; ++i) {
        double& upper = c[at(size - width_ + i, j, size)];
        double& lower = c[at(size - width_ + j, i, size)];
        upper = lower = 0.5 * (upper + lower);
      }
    }
  }

  // There is no room for another block: what is left over is measured but never used.
  std::vector<double> remainder(View v, View z, std::vector<double>& c) const {
    std::vector<double> b(static_cast<std::size_t>(width_ * width_));
    identity(width_, b);
    project_again(v, z, b, c);
    backend_->gram(z, b.data());
    std::vector<double> norms(b.size(), 0.0);
    for (index_t j = 0; j < width_; ++j) norms[at(j, j, width_)] = std::sqrt(std::max(b[at(j, j, width_)], 0.0));
    return norms;
  }

  std::vector<double> cholesky_of(View x) const {
    std::vector<double> g(static_cast<std::size_t>(width_ * width_));
    backend_->gram(x, g.data());
    const std::vector<double> floors(static_cast<std::size_t>(width_), 0.0);
    if (cholesky_upper(width_, g, floors) < width_) throw std::runtime_error("the probe block is rank deficient");
    return g;
  }

  // Z = V C + Q B: Cholesky QR and projection in turn, each twice. The second projection comes after a division by the
  // first factor, which may have blown up what rounding had left of V in the small columns of Z. Directions that are
  // nothing but rounding (the Krylov space has closed there) are replaced by fresh random ones with a zero coupling, so
  // that the basis stays full without inventing spectrum.
  std::vector<double> orthonormalise(View v, View z, std::vector<double>& c) {
    std::vector<double> b(static_cast<std::size_t>(width_ * width_));
    identity(width_, b);
    std::vector<double> inverse(b.size());
    for (int pass = 0; pass < 2; ++pass) {
      if (pass == 1) project_again(v, z, b, c);
      std::vector<double> g(b.size());
      backend_->gram(z, g.data());
      std::vector<double> noise(static_cast<std::size_t>(width_), 0.0);
      if (pass == 0) noise = rounding_of_products(v.count, c, g);
      std::vector<double> floors = noise;
      for (double& floor : floors) floor *= floor;
      if (cholesky_upper(width_, g, floors) < width_) {
        if (pass == 0) project_again(v, z, b, c);
        return orthonormalise_deficient(v, z, b, noise);
      }
      upper_inverse(width_, g, inverse);
      backend_->transform(z, inverse.data());
      b = upper_product(width_, g, b);
    }
    return b;
  }

  // What rounding may leave of every column of A Q_k, whose norms follow from their coefficients in V and the Gram
  // matrix of what is left. fp64 can afford a wide margin below the largest product of all. The bulk of an fp32 matrix
  // may itself be that far below its leading value, so there the margin is below each column's own product.
  std::vector<double> rounding_of_products(index_t size, const std::vector<double>& c, const std::vector<double>& g) {
    constexpr bool kDouble = std::is_same_v<typename B::Real, double>;
    constexpr double kNoise = kDouble ? 1e-12 : 8 * std::numeric_limits<float>::epsilon();
    std::vector<double> noise(static_cast<std::size_t>(width_));
    for (index_t j = 0; j < width_; ++j) {
      double squared = g[at(j, j, width_)];
      for (index_t i = 0; i < size; ++i) squared += c[at(i, j, size)] * c[at(i, j, size)];
      const double product = std::sqrt(squared);
      largest_ = std::max(largest_, product);
      noise[static_cast<std::size_t>(j)] = kNoise * product;
    }
    if (kDouble) std::fill(noise.begin(), noise.end(), kNoise * largest_);
    return noise;
  }

  // One column at a time. Rare: low-rank and tiny matrices.
  std::vector<double> orthonormalise_deficient(View v, View z, const std::vector<double>& before,
                                               const std::vector<double>& noise) {
    std::vector<double> b(static_cast<std::size_t>(width_ * width_), 0.0);
    index_t kept = 0;
    for (index_t j = 0; j < width_; ++j) {
      View column = z.slice(j, 1);
      double norm = project_column(z, j, &b[at(0, j, width_)]);
      if (norm > noise[static_cast<std::size_t>(j)] && norm > 0) {
        b[at(j, j, width_)] = norm;
        ++kept;
      } else {
        std::fill_n(&b[at(0, j, width_)], width_, 0.0);
        norm = replace_column(v, z, j);
        if (norm == 0) {
          exhausted_ = true;
          return b;
        }
      }
      const double scale = 1 / norm;
      backend_->transform(column, &scale);
    }
    if (kept == 0) exhausted_ = true;
    // Once more against V: normalising a small column blew up its rounding.
    std::vector<double> coefficients(static_cast<std::size_t>(v.count * width_));
    backend_->inner(v, z, coefficients.data());
    backend_->subtract(v, coefficients.data(), z);
    std::vector<double> r = cholesky_of(z);
    std::vector<double> inverse(r.size());
    upper_inverse(width_, r, inverse);
    backend_->transform(z, inverse.data());
    return upper_product(width_, upper_product(width_, r, b), before);
  }

  // Takes the columns before j out of column j, twice; adds the coefficients to `c`; returns the norm that is left.
  double project_column(View z, index_t j, double* c) const {
    View column = z.slice(j, 1);
    std::vector<double> coefficient(static_cast<std::size_t>(std::max<index_t>(j, 1)));
    for (int pass = 0; pass < 2 && j > 0; ++pass) {
      backend_->inner(z.slice(0, j), column, coefficient.data());
      backend_->subtract(z.slice(0, j), coefficient.data(), column);
      for (index_t i = 0; i < j; ++i) c[i] += coefficient[static_cast<std::size_t>(i)];
    }
    double squared = 0;
    backend_->gram(column, &squared);
    return std::sqrt(std::max(squared, 0.0));
  }

  double replace_column(View v, View z, index_t j) {
    View column = z.slice(j, 1);
    backend_->fill_probes(column, key_, next_column_++);
    double before = 0;
    backend_->gram(column, &before);
    std::vector<double> coefficient(static_cast<std::size_t>(v.count));
    for (int pass = 0; pass < 2; ++pass) {
      backend_->inner(v, column, coefficient.data());
      backend_->subtract(v, coefficient.data(), column);
    }
    std::vector<double> ignored(static_cast<std::size_t>(width_));
    const double norm = project_column(z, j, ignored.data());
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
  bool first_product_ready_ = false;
  bool exhausted_ = false;
  double largest_ = 0;  // largest norm of a column of A Q_j seen
  std::vector<double> r1_;
  std::vector<std::vector<double>> columns_;    // T, one block column per step, down to its diagonal block
  std::vector<std::vector<double>> couplings_;  // B_1, B_2, ...
  std::shared_ptr<const RitzValues> ritz_;      // the last that was asked for
};

}  // namespace mpfast::linalg
