// Products of two dense matrices in device memory, in single precision.
#pragma once

#include "core/types.hpp"
#include "cuda/machine/runtime.hpp"
#include "cuda/products/vector_kernels.hpp"

namespace mpfast::cuda {

// Row-major; entry (i, j) lies at data[i * stride + j].
template <class T>
struct DenseView {
  T* data = nullptr;
  index_t rows = 0;
  index_t cols = 0;
  index_t stride = 0;
};

// C (=, += or -=) A B. Every entry is one sum, in ascending order of the inner index: the bits do not depend on how the
// work is cut. 2 rows cols depth flops; with tiles of 128 x 128 every entry that is read from memory takes part in 128
// multiplications, so that arithmetic bounds it where all three are in the hundreds.
void dense_product(Stream stream, const DenseView<const float>& a, const DenseView<const float>& b, Into into,
                   const DenseView<float>& c);

}  // namespace mpfast::cuda
