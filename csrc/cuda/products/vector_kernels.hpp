// The kernels beside the pass over W: sums of partial results, and what block Lanczos does to its vectors. Vectors are
// `count` columns of length dim, each contiguous, in device memory.
#pragma once

#include "core/types.hpp"
#include "cuda/decoding/source.hpp"
#include "cuda/machine/runtime.hpp"
#include "random/philox.hpp"

namespace mpfast::cuda {

enum class Into { store, add, subtract };

// Factors of the entries of vectors of length dim; null where there are none.
struct Weights {
  const double* factors = nullptr;
  index_t dim = 1;
};

// out[i] (=, += or -=) factor * weights of i * sum over k < parts of partial[k * size + i], in double and in this
// order. Reads parts * size entries.
template <class Real, class Out>
void sum_parts(Stream stream, const Real* partial, index_t parts, index_t size, double factor, const Weights& weights,
               Into into, Out* out);

// out (count x count, column-major, on the device) = Z^T Z, products and sums in double. `partial` has room for
// gram_parts(dim) * count^2 doubles. Reads Z once; count^2 dim fused multiply-adds.
index_t gram_parts(index_t dim);
template <class Real>
void gram_of(Stream stream, const Real* z, index_t dim, int count, double* partial, double* out);

// Z = Z M, M count x count, column-major. Reads and writes Z once.
template <class Real>
void transform(Stream stream, Real* z, index_t dim, int count, const Real* m);

template <class Real>
void fill_probes(Stream stream, Real* v, index_t dim, index_t count, ProbeKey key, std::uint32_t first_column);

// The `count` columns of the identity from number `first_column` on.
void fill_identity(Stream stream, double* v, index_t dim, index_t count, index_t first_column);

// Sets x to zero wherever all columns of z are zero. zeros[block]: how many coordinates of that block of
// kZeroBlock coordinates that are.
constexpr index_t kZeroBlock = 256;
template <class Real>
void mask_zero_coordinates(Stream stream, const Real* z, int z_count, Real* x, int x_count, index_t dim,
                           index_t* zeros);

// sample (rows x cols, row-major, of type w.dtype_in_tiles()) = every row_step-th row and col_step-th column of w.
void gather_sample(Stream stream, const Source& w, index_t row_step, index_t col_step, index_t rows, index_t cols,
                   void* sample);

}  // namespace mpfast::cuda
