#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "core/dtype.hpp"
#include "cuda/machine/platform.hpp"
#include "cuda/reconstruct/storage.hpp"

namespace mpfast::cuda {

namespace {

constexpr unsigned kThreads = 256;
// Consecutive entries that one block takes.
constexpr index_t kChunk = 8192;

unsigned blocks_for(index_t items, index_t each) { return static_cast<unsigned>(ceil_div(items, each)); }

template <DType dtype>
__device__ typename Entry<dtype>::Bits bits_at(const MatrixView& w, index_t i) {
  const auto* const data = static_cast<const typename Entry<dtype>::Bits*>(w.data);
  return data[i / w.cols * w.row_stride + i % w.cols * w.col_stride];
}

// function(i) for this thread's share of the block's chunk.
template <class Function>
__device__ void for_each_of_chunk(index_t size, const Function& function) {
  const index_t begin = blockIdx.x * kChunk;
  const index_t end = begin + kChunk < size ? begin + kChunk : size;
  for (index_t i = begin + threadIdx.x; i < end; i += kThreads) function(i);
}

template <DType dtype>
__global__ void largest_kernel(MatrixView w, double* found) {
  auto* const largest = shared_memory<double>();
  double mine = 0;
  for_each_of_chunk(w.rows * w.cols, [&](index_t i) {
    const auto bits = bits_at<dtype>(w, i);
    const bool finite = (bits & Entry<dtype>::kExponent) != Entry<dtype>::kExponent;
    const double value = finite ? Entry<dtype>::widen(bits) : std::numeric_limits<double>::infinity();
    const double magnitude = value < 0 ? -value : value;
    mine = magnitude > mine ? magnitude : mine;
  });
  largest[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned t = 1; t < kThreads; ++t) mine = largest[t] > mine ? largest[t] : mine;
  found[blockIdx.x] = mine;
}

template <DType dtype>
__global__ void load_kernel(MatrixView w, double factor, const float* rows, float* to) {
  const index_t i = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= w.rows * w.cols) return;
  const auto value = static_cast<float>(Entry<dtype>::widen(bits_at<dtype>(w, i)) * factor);
  to[i] = rows != nullptr ? value * rows[i / w.cols] : value;
}

template <DType dtype>
__global__ void store_kernel(const float* values, index_t size, index_t cols, double factor, const float* rows,
                             typename Entry<dtype>::Bits* to) {
  const index_t i = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= size) return;
  const float value = rows != nullptr ? values[i] / rows[i / cols] : values[i];
  constexpr double kLargest = Entry<dtype>::widen(Entry<dtype>::kExponent - 1);
  const double scaled = value * factor;
  to[i] = Entry<dtype>::narrow(scaled > kLargest ? kLargest : scaled < -kLargest ? -kLargest : scaled);
}

__global__ void keep_kernel(std::uint8_t* keep, index_t size) {
  const index_t i = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < size) keep[i] = 1;
}

__global__ void count_kernel(const std::uint8_t* keep, index_t size, index_t* kept) {
  auto* const counts = shared_memory<std::uint32_t>();
  std::uint32_t mine = 0;
  for_each_of_chunk(size, [&](index_t i) { mine += keep[i] != 0 ? 1 : 0; });
  counts[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x != 0) return;
  index_t sum = 0;
  for (unsigned t = 0; t < kThreads; ++t) sum += counts[t];
  kept[blockIdx.x] = sum;
}

}  // namespace

double largest_magnitude(Stream stream, const MatrixView& w) {
  const unsigned blocks = blocks_for(w.rows * w.cols, kChunk);
  const DeviceBuffer<double> found(stream, blocks);
  const Grid grid{.x = blocks, .threads = kThreads, .shared_bytes = kThreads * sizeof(double)};
  dispatch(w.dtype, [&]<DType dtype>() { launch(stream, grid, &largest_kernel<dtype>, w, found.get()); });
  const std::vector<double> all = to_host(stream, found.get(), blocks);
  return *std::max_element(all.begin(), all.end());
}

void load_weights(Stream stream, const MatrixView& w, double factor, const float* rows, float* to) {
  const Grid grid{.x = blocks_for(w.rows * w.cols, kThreads), .threads = kThreads};
  dispatch(w.dtype, [&]<DType dtype>() { launch(stream, grid, &load_kernel<dtype>, w, factor, rows, to); });
}

void store_weights(Stream stream, index_t rows, index_t cols, const float* values, double factor,
                   const float* row_factors, DType dtype, void* to) {
  const Grid grid{.x = blocks_for(rows * cols, kThreads), .threads = kThreads};
  dispatch(dtype, [&]<DType each>() {
    launch(stream, grid, &store_kernel<each>, values, rows * cols, cols, factor, row_factors,
           static_cast<typename Entry<each>::Bits*>(to));
  });
}

void keep_all(Stream stream, std::uint8_t* keep, index_t entries) {
  launch(stream, {.x = blocks_for(entries, kThreads), .threads = kThreads}, &keep_kernel, keep, entries);
}

index_t count_kept(Stream stream, const std::uint8_t* keep, index_t entries) {
  const unsigned blocks = blocks_for(entries, kChunk);
  const DeviceBuffer<index_t> counts(stream, blocks);
  const Grid grid{.x = blocks, .threads = kThreads, .shared_bytes = kThreads * sizeof(std::uint32_t)};
  launch(stream, grid, &count_kernel, keep, entries, counts.get());
  const std::vector<index_t> all = to_host(stream, counts.get(), blocks);
  return std::accumulate(all.begin(), all.end(), index_t{0});
}

}  // namespace mpfast::cuda
