// The Gram product with a matrix in host memory that is too large for the device, or not worth keeping there.
//
// B is cut into panels of rows. Two pipelines, each with a stream, a panel in device memory and a sum Z of its own,
// take the panels in turn: while one multiplies, the other's panel is on its way. Their sums are added at the end, so
// the result does not depend on timing.
#pragma once

#include <array>
#include <memory>

#include "cuda/decoding/device_codes.hpp"
#include "cuda/products/products.hpp"

namespace mpfast::cuda {

template <class Real>
class StreamedGramProduct {
 public:
  // `panel_bytes`: device memory for one panel. Rows or columns of `operand.b`, which lies in host memory, must be
  // contiguous, rows of codes and of their scales in order (std::invalid_argument).
  StreamedGramProduct(int device, const Operand& operand, std::size_t panel_bytes);

  // Z = B^T (B X); x and z are vectors in device memory, ready on, and for, `stream`. `energies`, when not null, goes
  // with `stats`.
  void apply(Stream stream, int width, const Real* x, Real* z, linalg::OperatorStats* stats, Energies* energies);

 private:
  struct Pipeline {
    explicit Pipeline(int device) : stream(device), workspace(stream) {}

    OwnStream stream;
    Workspace<Real> workspace;
    DeviceBuffer<char> panel;
    DeviceCodes codes;
    DeviceBuffer<Real> sum;
  };

  // Rows [first, first + rows) of B.
  Operand panel_on_device(Pipeline& pipeline, index_t first, index_t rows);
  MatrixView entries_on_device(Pipeline& pipeline, index_t first, index_t rows);
  // Of device memory.
  index_t bytes_of(index_t rows) const;

  Operand operand_;
  index_t panel_rows_ = 0;
  std::array<std::unique_ptr<Pipeline>, 2> pipelines_;
};

}  // namespace mpfast::cuda
