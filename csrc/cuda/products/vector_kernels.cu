#include <algorithm>

#include "core/factors.hpp"
#include "cuda/machine/platform.hpp"
#include "cuda/products/vector_kernels.hpp"

namespace mpfast::cuda {

namespace {

constexpr unsigned kThreads = 256;
// Coordinates that one block of gram_kernel adds up, and how many of them it holds in shared memory at a time.
constexpr index_t kGramChunk = 256;
constexpr index_t kGramTile = 32;
constexpr int kMostColumns = 32;
constexpr index_t kTransformRows = 64;

unsigned blocks_for(index_t items, index_t each) { return static_cast<unsigned>((items + each - 1) / each); }

__device__ index_t thread_number() { return static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

template <class Real, class Out>
__global__ void sum_parts_kernel(const Real* partial, index_t parts, index_t size, double factor, Weights weights,
                                 Into into, Out* out) {
  const index_t i = thread_number();
  if (i >= size) return;
  double sum = 0;
#pragma unroll 4
  for (index_t k = 0; k < parts; ++k) sum += static_cast<double>(partial[k * size + i]);
  sum *= factor;
  if (weights.factors != nullptr) sum = weighted(sum, weights.factors[i % weights.dim]);
  if (into == Into::add) sum = static_cast<double>(out[i]) + sum;
  if (into == Into::subtract) sum = static_cast<double>(out[i]) - sum;
  out[i] = static_cast<Out>(sum);
}

// Thread t adds up the pairs of columns t, t + T, ...; a tile of Z, widened, lies in shared memory by column.
template <class Real>
__global__ void gram_kernel(const Real* z, index_t dim, int count, double* partial) {
  constexpr int kPairs = kMostColumns * kMostColumns / static_cast<int>(kThreads);
  constexpr index_t kStride = kGramTile + 1;
  auto* const tile = shared_memory<double>();
  const index_t first = blockIdx.x * kGramChunk;
  const index_t last = first + kGramChunk < dim ? first + kGramChunk : dim;
  const int t = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  double sum[kPairs] = {};
  for (index_t begin = first; begin < last; begin += kGramTile) {
    __syncthreads();
    for (int i = t; i < count * kGramTile; i += threads) {
      const index_t c = i / kGramTile;
      const index_t j = i % kGramTile;
      tile[c * kStride + j] = begin + j < last ? static_cast<double>(z[c * dim + begin + j]) : 0.0;
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      const int pair = t + threads * n;
      if (pair >= count * count) break;
      const double* const a = tile + pair % count * kStride;
      const double* const b = tile + pair / count * kStride;
      for (index_t j = 0; j < kGramTile; ++j) sum[n] += a[j] * b[j];
    }
  }
#pragma unroll
  for (int n = 0; n < kPairs; ++n) {
    const int pair = t + threads * n;
    if (pair < count * count) partial[blockIdx.x * index_t{count} * count + pair] = sum[n];
  }
}

// A block takes kTransformRows coordinates: reads their entries into shared memory, beside M, and writes them back.
template <class Real>
__global__ void transform_kernel(Real* z, index_t dim, int count, const Real* m) {
  auto* const matrix = shared_memory<Real>();
  Real* const rows = matrix + count * count;
  const index_t first = blockIdx.x * kTransformRows;
  const index_t left = dim - first < kTransformRows ? dim - first : kTransformRows;
  const int t = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  for (int i = t; i < count * count; i += threads) matrix[i] = m[i];
  for (int i = t; i < count * kTransformRows; i += threads) {
    const index_t j = i % kTransformRows;
    if (j < left) rows[i] = z[i / kTransformRows * dim + first + j];
  }
  __syncthreads();
  for (int i = t; i < count * kTransformRows; i += threads) {
    const index_t j = i % kTransformRows;
    const int c = static_cast<int>(i / kTransformRows);
    if (j >= left) continue;
    Real sum = 0;
    for (int k = 0; k < count; ++k) sum += rows[k * kTransformRows + j] * matrix[c * count + k];
    z[c * dim + first + j] = sum;
  }
}

template <class Real>
__global__ void probe_kernel(Real* v, index_t dim, index_t count, ProbeKey key, std::uint32_t first_column) {
  const index_t i = thread_number();
  if (i >= dim * count) return;
  v[i] = static_cast<Real>(probe_entry(key, i % dim, first_column + static_cast<std::uint32_t>(i / dim)));
}

__global__ void identity_kernel(double* v, index_t dim, index_t count, index_t first_column) {
  const index_t i = thread_number();
  if (i < dim * count) v[i] = i % dim == first_column + i / dim ? 1 : 0;
}

template <class Real>
__global__ void zero_kernel(const Real* z, int z_count, Real* x, int x_count, index_t dim, index_t* zeros) {
  auto* const found = shared_memory<int>();
  const index_t j = thread_number();
  bool zero = j < dim;
  for (int c = 0; c < z_count && zero; ++c) zero = z[c * dim + j] == Real{0};
  if (zero) {
    for (int c = 0; c < x_count; ++c) x[c * dim + j] = Real{0};
  }
  found[threadIdx.x] = zero ? 1 : 0;
  __syncthreads();
  if (threadIdx.x == 0) {
    index_t sum = 0;
    for (unsigned t = 0; t < blockDim.x; ++t) sum += found[t];
    zeros[blockIdx.x] = sum;
  }
}

template <class Bits>
__global__ void sample_kernel(MatrixView w, index_t row_step, index_t col_step, index_t rows, index_t cols,
                              Bits* sample) {
  const index_t i = thread_number();
  if (i >= rows * cols) return;
  const auto* const data = static_cast<const Bits*>(w.data);
  sample[i] = data[i / cols * row_step * w.row_stride + i % cols * col_step * w.col_stride];
}

__global__ void coded_sample_kernel(Codes codes, index_t row_step, index_t col_step, index_t rows, index_t cols,
                                    float* sample) {
  const index_t i = thread_number();
  if (i >= rows * cols) return;
  const index_t row = i / cols * row_step;
  const index_t col = i % cols * col_step;
  sample[i] = codes.swapped ? codes.number(col, row) : codes.number(row, col);
}

}  // namespace

template <class Real, class Out>
void sum_parts(Stream stream, const Real* partial, index_t parts, index_t size, double factor, const Weights& weights,
               Into into, Out* out) {
  const Grid grid{.x = blocks_for(size, kThreads), .threads = kThreads};
  launch(stream, grid, &sum_parts_kernel<Real, Out>, partial, parts, size, factor, weights, into, out);
}

index_t gram_parts(index_t dim) { return blocks_for(dim, kGramChunk); }

template <class Real>
void gram_of(Stream stream, const Real* z, index_t dim, int count, double* partial, double* out) {
  const index_t parts = gram_parts(dim);
  const Grid grid{.x = static_cast<unsigned>(parts),
                  .threads = kThreads,
                  .shared_bytes = static_cast<std::size_t>(count * (kGramTile + 1)) * sizeof(double)};
  launch(stream, grid, &gram_kernel<Real>, z, dim, count, partial);
  sum_parts(stream, partial, parts, index_t{count} * count, 1.0, {}, Into::store, out);
}

template <class Real>
void transform(Stream stream, Real* z, index_t dim, int count, const Real* m) {
  const Grid grid{.x = blocks_for(dim, kTransformRows),
                  .threads = kThreads,
                  .shared_bytes = static_cast<std::size_t>(count * count + count * kTransformRows) * sizeof(Real)};
  launch(stream, grid, &transform_kernel<Real>, z, dim, count, m);
}

template <class Real>
void fill_probes(Stream stream, Real* v, index_t dim, index_t count, ProbeKey key, std::uint32_t first_column) {
  const Grid grid{.x = blocks_for(dim * count, kThreads), .threads = kThreads};
  launch(stream, grid, &probe_kernel<Real>, v, dim, count, key, first_column);
}

void fill_identity(Stream stream, double* v, index_t dim, index_t count, index_t first_column) {
  const Grid grid{.x = blocks_for(dim * count, kThreads), .threads = kThreads};
  launch(stream, grid, &identity_kernel, v, dim, count, first_column);
}

template <class Real>
void mask_zero_coordinates(Stream stream, const Real* z, int z_count, Real* x, int x_count, index_t dim,
                           index_t* zeros) {
  const Grid grid{.x = blocks_for(dim, kZeroBlock), .threads = kZeroBlock, .shared_bytes = kZeroBlock * sizeof(int)};
  launch(stream, grid, &zero_kernel<Real>, z, z_count, x, x_count, dim, zeros);
}

void gather_sample(Stream stream, const Source& w, index_t row_step, index_t col_step, index_t rows, index_t cols,
                   void* sample) {
  const Grid grid{.x = blocks_for(rows * cols, kThreads), .threads = kThreads};
  if (w.is_coded()) {
    return launch(stream, grid, &coded_sample_kernel, w.codes(), row_step, col_step, rows, cols,
                  static_cast<float*>(sample));
  }
  dispatch(w.dtype, [&]<DType dtype>() {
    using Bits = typename Entry<dtype>::Bits;
    launch(stream, grid, &sample_kernel<Bits>, w.entries(), row_step, col_step, rows, cols, static_cast<Bits*>(sample));
  });
}

template void sum_parts(Stream, const float*, index_t, index_t, double, const Weights&, Into, float*);
template void sum_parts(Stream, const float*, index_t, index_t, double, const Weights&, Into, double*);
template void sum_parts(Stream, const double*, index_t, index_t, double, const Weights&, Into, double*);
template void gram_of(Stream, const float*, index_t, int, double*, double*);
template void gram_of(Stream, const double*, index_t, int, double*, double*);
template void transform(Stream, float*, index_t, int, const float*);
template void transform(Stream, double*, index_t, int, const double*);
template void fill_probes(Stream, float*, index_t, index_t, ProbeKey, std::uint32_t);
template void fill_probes(Stream, double*, index_t, index_t, ProbeKey, std::uint32_t);
template void mask_zero_coordinates(Stream, const float*, int, float*, int, index_t, index_t*);
template void mask_zero_coordinates(Stream, const double*, int, double*, int, index_t, index_t*);

}  // namespace mpfast::cuda
