// The Gram product with a matrix in host memory that is too large for the device, or not worth keeping there.
//
// B is cut into panels of rows. Two pipelines, each with a stream, a panel in device memory and a sum Z of its own,
// take the panels in turn: while one multiplies, the other's panel is on its way. Their sums are added at the end, so
// the result does not depend on timing.
#pragma once

#include <array>
#include <memory>

#include "cuda/products/products.hpp"

namespace mpfast::cuda {

template <class Real>
class StreamedGramProduct {
 public:
  // `panel_bytes`: device memory for one panel. Rows or columns of `operand.b` must be contiguous
  // (std::invalid_argument).
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
    DeviceBuffer<Real> sum;
  };

  Operand panel_on_device(Pipeline& pipeline, index_t first, index_t rows);

  Operand operand_;
  index_t panel_rows_ = 0;
  std::array<std::unique_ptr<Pipeline>, 2> pipelines_;
};

}  // namespace mpfast::cuda
