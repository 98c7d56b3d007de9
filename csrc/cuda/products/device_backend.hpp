// The Backend of linalg/backend.hpp in device memory. The operator itself is a callable, as on the host: a product with
// a matrix on the device, or with one that streams through it.
#pragma once

#include <cassert>
#include <functional>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "cuda/machine/runtime.hpp"
#include "cuda/products/products.hpp"
#include "cuda/products/vector_kernels.hpp"
#include "linalg/backend.hpp"

namespace mpfast::cuda {

template <class RealType>
class DeviceBackend {
 public:
  using Real = RealType;

  struct View {
    Real* data = nullptr;
    index_t dim = 0;
    index_t count = 0;

    View slice(index_t first, index_t how_many) const { return {data + first * dim, dim, how_many}; }
  };

  class Vectors {
   public:
    Vectors() = default;
    Vectors(Stream stream, index_t dim, index_t count) : data_(stream, dim * count), dim_(dim) {}
    View slice(index_t first, index_t how_many) const { return {data_.get() + first * dim_, dim_, how_many}; }

   private:
    DeviceBuffer<Real> data_;
    index_t dim_ = 0;
  };

  // Z = A X; stats, when not null, is to be filled.
  using Apply = std::function<void(Workspace<Real>& workspace, View x, View z, linalg::OperatorStats* stats)>;

  DeviceBackend(Stream stream, index_t dim, Apply apply) : workspace_(stream), dim_(dim), apply_(std::move(apply)) {}

  index_t dim() const { return dim_; }
  Stream stream() const { return workspace_.stream(); }
  Vectors allocate(index_t count) const { return Vectors(stream(), dim_, count); }

  void copy(View from, View to) const {
    cuda::copy(stream(), to.data, from.data, static_cast<std::size_t>(from.count * dim_) * sizeof(Real));
  }

  void fill_probes(View v, ProbeKey key, index_t first_column) {
    cuda::fill_probes(stream(), v.data, dim_, v.count, key, static_cast<std::uint32_t>(first_column));
  }

  void apply(View x, View z, linalg::OperatorStats* stats) { apply_(workspace_, x, z, stats); }

  void inner(View v, View z, SmallView out) {
    assert(out.rows() == v.count && out.cols() == z.count);
    const index_t size = v.count * z.count;
    double* const sums = results_.grown_to(stream(), size);
    multiply(workspace_, vectors_as_rows(v), z.count, z.data, sums, Into::store);
    to_caller(sums, out.entries());
  }

  void gram(View z, SmallView out) {
    assert(out.rows() == z.count && out.cols() == z.count);
    const index_t size = z.count * z.count;
    double* const sums = results_.grown_to(stream(), size * (1 + gram_parts(dim_)));
    gram_of(stream(), z.data, dim_, static_cast<int>(z.count), sums + size, sums);
    to_caller(sums, out.entries());
  }

  void subtract(View v, ConstSmallView coefficients, View z) { add_combination(v, coefficients, z, Into::subtract); }

  void combine(View v, ConstSmallView coefficients, View z) { add_combination(v, coefficients, z, Into::store); }

  void transform(View z, ConstSmallView matrix) {
    assert(matrix.rows() == z.count && matrix.cols() == z.count);
    cuda::transform(stream(), z.data, dim_, static_cast<int>(z.count), to_device(matrix.entries()));
  }

  index_t mask_zero_coordinates(View z, View x) {
    const index_t blocks = (dim_ + kZeroBlock - 1) / kZeroBlock;
    const DeviceBuffer<index_t> zeros(stream(), blocks);
    cuda::mask_zero_coordinates(stream(), z.data, static_cast<int>(z.count), x.data, static_cast<int>(x.count), dim_,
                                zeros.get());
    const std::vector<index_t> counts = to_host(stream(), zeros.get(), blocks);
    return std::accumulate(counts.begin(), counts.end(), index_t{0});
  }

 private:
  // The vectors as the rows of a matrix in memory.
  static Operand vectors_as_rows(View v) {
    return {MatrixView{v.data, kDTypeOf<Real>, v.count, v.dim, v.dim, 1}, false, 0, {}};
  }

  void add_combination(View v, ConstSmallView coefficients, View z, Into into) {
    assert(coefficients.rows() == v.count && coefficients.cols() == z.count);
    multiply(workspace_, vectors_as_rows(v).transposed(), z.count, to_device(coefficients.entries()), z.data, into);
  }

  const Real* to_device(std::span<const double> values) {
    host_.assign(values.begin(), values.end());
    Real* const there = coefficients_.grown_to(stream(), std::ssize(values));
    cuda::copy(stream(), there, host_.data(), host_.size() * sizeof(Real));
    return there;
  }

  void to_caller(const double* from, std::span<double> out) {
    cuda::copy(stream(), out.data(), from, out.size_bytes());
    synchronize(stream());
  }

  Workspace<Real> workspace_;
  index_t dim_;
  Apply apply_;
  DeviceBuffer<double> results_;
  DeviceBuffer<Real> coefficients_;
  std::vector<Real> host_;
};

static_assert(linalg::Backend<DeviceBackend<float>>);
static_assert(linalg::Backend<DeviceBackend<double>>);

}  // namespace mpfast::cuda
