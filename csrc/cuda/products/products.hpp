// Products with a matrix in device memory: passes and the sums of their partial results.
#pragma once

#include "core/energies.hpp"
#include "core/factors.hpp"
#include "core/types.hpp"
#include "cuda/decoding/source.hpp"
#include "cuda/machine/runtime.hpp"
#include "cuda/products/product_kernels.hpp"
#include "cuda/products/vector_kernels.hpp"
#include "linalg/backend.hpp"

namespace mpfast::cuda {

// Device memory that products use again and again, and the device they run on.
template <class Real>
class Workspace {
 public:
  explicit Workspace(Stream stream) : stream_(stream), limits_(limits_of(stream.device)) {}

  Stream stream() const { return stream_; }
  const DeviceLimits& limits() const { return limits_; }
  Real* partial(index_t count) { return partial_.grown_to(stream_, count); }
  Real* inner(index_t count) { return inner_.grown_to(stream_, count); }
  BlockStats* stats(index_t count) { return stats_.grown_to(stream_, count); }
  double* energies(index_t count) { return energies_.grown_to(stream_, count); }

  // As gram_fits; asks the device when the plan is another than the last one.
  bool has_room_for(const ProductPlan& plan, const Source& b);

 private:
  struct Question {
    int width = 0;
    int threads = 0;
    index_t slices = 0;
    DType dtype = DType::float32;
    bool coded = false;
    bool operator==(const Question&) const = default;
  };

  Stream stream_;
  DeviceLimits limits_;
  DeviceBuffer<Real> partial_;
  DeviceBuffer<Real> inner_;
  DeviceBuffer<BlockStats> stats_;
  DeviceBuffer<double> energies_;
  Question asked_;
  bool answer_ = true;
};

// The matrix a product is taken with: 2^-scale_exponent B, where B is W or, swapped, W^T; and what its factors, which
// lie on the device, make of it.
struct Operand {
  Source b;
  bool swapped = false;
  int scale_exponent = 0;
  Factors factors;

  Operand transposed() const { return {b.transposed(), !swapped, scale_exponent, factors.transposed()}; }
};

// The Gram operand of the short side of w: B has min(rows, cols) columns.
inline Operand short_side(const Source& w, int scale_exponent, const Factors& factors) {
  const Operand operand{w, false, scale_exponent, factors};
  return w.rows >= w.cols ? operand : operand.transposed();
}

// Factors in device memory, there when this returns.
class DeviceFactors {
 public:
  DeviceFactors() = default;
  DeviceFactors(Stream stream, const Factors& factors, const Source& w);
  Factors view() const { return {rows_.get(), cols_.get()}; }

 private:
  DeviceBuffer<double> rows_;
  DeviceBuffer<double> cols_;
};

// Z (= or +=) B^T (B X), `width` (1 to 32) vectors of length B.cols. One pass over B, or two where product_kernels.hpp
// says so. `stats`, when not null, is filled and waited for, and so are `energies`, those of W, which go with them.
template <class Real>
void gram_product(Workspace<Real>& workspace, const Operand& operand, int width, const Real* x, Real* z, Into into,
                  linalg::OperatorStats* stats, Energies* energies = nullptr);

// Y (=, += or -=) B X, any width; X: vectors of length B.cols, Y: of length B.rows. Sums over slices of B are formed in
// double whatever Out is.
template <class Real, class Out>
void multiply(Workspace<Real>& workspace, const Operand& operand, index_t width, const Real* x, Out* y, Into into);

}  // namespace mpfast::cuda
