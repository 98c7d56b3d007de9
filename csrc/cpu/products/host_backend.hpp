// The Backend of linalg/backend.hpp on host memory. The operator itself is a callable: the fused Gram kernel for a
// matrix in memory, or a Python callback for a matrix somebody else multiplies with.
#pragma once

#include <algorithm>
#include <cassert>
#include <functional>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/machine/team.hpp"
#include "cpu/products/products.hpp"
#include "linalg/backend.hpp"
#include "linalg/lapack.hpp"

namespace mpfast::cpu {

template <class RealType>
class HostBackend {
 public:
  using Real = RealType;
  // z = A x for `width` contiguous vectors; stats, when not null, is to be filled.
  using Apply = std::function<void(index_t width, const Real* x, Real* z, linalg::OperatorStats* stats)>;

  struct View {
    Real* data = nullptr;
    index_t dim = 0;
    index_t count = 0;

    View slice(index_t first, index_t how_many) const { return {data + first * dim, dim, how_many}; }
  };

  class Vectors {
   public:
    Vectors() = default;
    // Uninitialised on purpose: pages are touched first by whoever fills them.
    Vectors(index_t dim, index_t count) : data_(new Real[static_cast<std::size_t>(dim * count)]), dim_(dim) {}
    View slice(index_t first, index_t how_many) const { return {data_.get() + first * dim_, dim_, how_many}; }

   private:
    std::unique_ptr<Real[]> data_;
    index_t dim_ = 0;
  };

  HostBackend(Team& team, index_t dim, Apply apply) : team_(&team), dim_(dim), apply_(std::move(apply)) {}

  // Puts the backend on another team and operator; vectors already there stay as they are.
  void use(Team& team, Apply apply) {
    team_ = &team;
    apply_ = std::move(apply);
  }

  index_t dim() const { return dim_; }
  Vectors allocate(index_t count) const { return Vectors(dim_, count); }

  void copy(View from, View to) const { std::copy_n(from.data, from.count * dim_, to.data); }

  void fill_probes(View v, ProbeKey key, index_t first_column) {
    over_chunks(kFlopsOfProbe * static_cast<double>(dim_ * v.count), [&](index_t first, index_t length, index_t) {
      for (index_t c = 0; c < v.count; ++c) {
        for (index_t j = first; j < first + length; ++j) {
          v.data[c * dim_ + j] = static_cast<Real>(probe_entry(key, j, static_cast<std::uint32_t>(first_column + c)));
        }
      }
    });
  }

  void apply(View x, View z, linalg::OperatorStats* stats) { apply_(x.count, x.data, z.data, stats); }

  // The projections on a basis go through the kernels of products.hpp: BLAS would spend its time on packing the basis
  // for the few columns of z.
  void inner(View v, View z, SmallView out) {
    assert(out.rows() == v.count && out.cols() == z.count);
    const auto size = static_cast<std::size_t>(v.count * z.count);
    std::vector<Real> partial(size * static_cast<std::size_t>(chunks()));
    over_chunks(flops(v.count, z.count), [&](index_t first, index_t length, index_t chunk) {
      Team alone(1);
      const std::vector<Real> piece = copied(z, first, length);
      multiply(alone, coordinates(v, first, length), 0, z.count, piece.data(),
               &partial[size * static_cast<std::size_t>(chunk)]);
    });
    sum_partials(partial, out.entries());
  }

  void gram(View z, SmallView out) {
    assert(out.rows() == z.count && out.cols() == z.count);
    const auto size = static_cast<std::size_t>(z.count * z.count);
    std::vector<double> partial(size * static_cast<std::size_t>(chunks()));
    over_chunks(flops(z.count, z.count), [&](index_t first, index_t length, index_t chunk) {
      std::vector<double> wide(static_cast<std::size_t>(length * z.count));
      for (index_t c = 0; c < z.count; ++c) {
        std::copy_n(z.data + c * dim_ + first, length, wide.data() + c * length);
      }
      linalg::gemm(true, false, z.count, z.count, length, 1.0, wide.data(), length, wide.data(), length, 0.0,
                   &partial[size * static_cast<std::size_t>(chunk)], z.count);
    });
    sum_partials(partial, out.entries());
  }

  void subtract(View v, ConstSmallView coefficients, View z) {
    assert(coefficients.rows() == v.count && coefficients.cols() == z.count);
    const std::vector<Real> c = rounded(coefficients);
    over_chunks(flops(v.count, z.count), [&](index_t first, index_t length, index_t) {
      Team alone(1);
      std::vector<Real> sum(static_cast<std::size_t>(length * z.count));
      multiply(alone, coordinates(v, first, length).transposed(), 0, z.count, c.data(), sum.data());
      for (index_t k = 0; k < z.count; ++k) {
        for (index_t j = 0; j < length; ++j)
          z.data[k * dim_ + first + j] -= sum[static_cast<std::size_t>(k * length + j)];
      }
    });
  }

  void combine(View v, ConstSmallView coefficients, View z) {
    assert(coefficients.rows() == v.count && coefficients.cols() == z.count);
    const std::vector<Real> c = rounded(coefficients);
    over_chunks(flops(v.count, z.count), [&](index_t first, index_t length, index_t) {
      linalg::gemm(false, false, length, z.count, v.count, Real{1}, v.data + first, dim_, c.data(), v.count, Real{0},
                   z.data + first, dim_);
    });
  }

  void transform(View z, ConstSmallView matrix) {
    assert(matrix.rows() == z.count && matrix.cols() == z.count);
    const std::vector<Real> m = rounded(matrix);
    over_chunks(flops(z.count, z.count), [&](index_t first, index_t length, index_t) {
      const std::vector<Real> old = copied(z, first, length);
      linalg::gemm(false, false, length, z.count, z.count, Real{1}, old.data(), length, m.data(), z.count, Real{0},
                   z.data + first, dim_);
    });
  }

  // Sets x to zero wherever every vector of z is zero; returns how many coordinates that are.
  index_t mask_zero_coordinates(View z, View x) const {
    index_t zeros = 0;
    for (index_t j = 0; j < dim_; ++j) {
      bool zero = true;
      for (index_t c = 0; c < z.count && zero; ++c) zero = z.data[c * dim_ + j] == Real{0};
      if (!zero) continue;
      ++zeros;
      for (index_t c = 0; c < x.count; ++c) x.data[c * dim_ + j] = Real{0};
    }
    return zeros;
  }

 private:
  // Coordinates per task: fixed, so that sums do not depend on the team. A page of each vector in single precision.
  static constexpr index_t kChunk = 1024;
  // What drawing an entry of a probe takes the time of.
  static constexpr double kFlopsOfProbe = 1000;

  // Coordinates [first, first + length) of the vectors of v, as a matrix with a row per vector.
  static MatrixView coordinates(View v, index_t first, index_t length) {
    return {v.data + first, kDTypeOf<Real>, v.count, length, v.dim, 1};
  }

  static std::vector<Real> copied(View v, index_t first, index_t length) {
    std::vector<Real> copy(static_cast<std::size_t>(length * v.count));
    for (index_t c = 0; c < v.count; ++c) {
      std::copy_n(v.data + c * v.dim + first, length, copy.data() + c * length);
    }
    return copy;
  }

  index_t chunks() const { return (dim_ + kChunk - 1) / kChunk; }

  // Of a product between the vectors of two views.
  double flops(index_t many, index_t few) const {
    return 2 * static_cast<double>(dim_) * static_cast<double>(many) * static_cast<double>(few);
  }

  template <class F>
  void over_chunks(double flops, const F& body) {
    const auto task = [&](index_t chunk, int) {
      const index_t first = chunk * kChunk;
      body(first, std::min(kChunk, dim_ - first), chunk);
    };
    team_->parallel_for(chunks(), task, flops);
  }

  // In the precision of the vectors, column after column.
  static std::vector<Real> rounded(ConstSmallView matrix) {
    const auto entries = matrix.entries();
    return std::vector<Real>(entries.begin(), entries.end());
  }

  void sum_partials(const auto& partial, std::span<double> out) const {
    std::ranges::fill(out, 0.0);
    for (std::size_t at = 0; at < partial.size(); at += out.size()) {
      for (std::size_t i = 0; i < out.size(); ++i) out[i] += static_cast<double>(partial[at + i]);
    }
  }

  Team* team_;
  index_t dim_;
  Apply apply_;
};

static_assert(linalg::Backend<HostBackend<float>>);
static_assert(linalg::Backend<HostBackend<double>>);

}  // namespace mpfast::cpu
