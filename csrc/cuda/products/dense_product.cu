#include <cmath>

#include "cuda/machine/platform.hpp"
#include "cuda/products/dense_product.hpp"

namespace mpfast::cuda {

namespace {

constexpr int kSide = 16;  // threads along a side of a tile
constexpr unsigned kThreads = kSide * kSide;
constexpr int kDepth = 16;  // inner indices in shared memory at a time
constexpr int kQuad = 4;    // neighbours that a thread reads from shared memory at once
// With fewer large tiles than this, small ones occupy more of the device.
constexpr index_t kFewTiles = 128;

struct alignas(sizeof(float) * kQuad) Quad {
  float entries[kQuad];
};

// Both operands with the inner index first; two steps of it, one that is computed with and one that is on its way.
template <int kTile>
struct Shared {
  float a[2][kDepth][kTile + kQuad];
  float b[2][kDepth][kTile];
};

// Copies an entry, or zero from beyond the matrix.
__device__ void bring_entry(const DenseView<const float>& from, index_t row, index_t col, float* to) {
  if (row < from.rows && col < from.cols) {
    copy_word_async(to, from.data + row * from.stride + col);
  } else {
    *to = 0;
  }
}

// This thread's share of the tiles of one step. Unrolled further, its addresses would take the sums' registers.
template <int kTile>
__device__ void bring(const DenseView<const float>& a, const DenseView<const float>& b, index_t row, index_t col,
                      index_t depth, int step, Shared<kTile>& s) {
#pragma unroll 2
  for (int e = 0; e < kTile * kDepth / static_cast<int>(kThreads); ++e) {
    const int i = static_cast<int>(threadIdx.x) + e * static_cast<int>(kThreads);
    bring_entry(a, row + i / kDepth, depth + i % kDepth, &s.a[step][i % kDepth][i / kDepth]);
    bring_entry(b, depth + i / kTile, col + i % kTile, &s.b[step][i / kTile][i % kTile]);
  }
}

// A thread has kEach x kEach entries of the tile: quads that lie kSide quads apart in either direction.
template <int kEach>
__device__ void read_quads(const float* line, int number, float* to) {
#pragma unroll
  for (int q = 0; q < kEach / kQuad; ++q) {
    const Quad quad = *reinterpret_cast<const Quad*>(line + (q * kSide + number) * kQuad);
#pragma unroll
    for (int i = 0; i < kQuad; ++i) to[q * kQuad + i] = quad.entries[i];
  }
}

// The tiles of one inner step are computed with while those of the next are on their way. Two blocks share a
// multiprocessor, so that one computes while the other waits.
template <int kTile>
__global__ void __launch_bounds__(kThreads, 2)
    product_kernel(DenseView<const float> a, DenseView<const float> b, Into into, DenseView<float> c) {
  constexpr int kEach = kTile / kSide;
  Shared<kTile>& s = *shared_memory<Shared<kTile>>();
  const index_t column_tiles = (c.cols + kTile - 1) / kTile;
  const index_t first_row = blockIdx.x / column_tiles * kTile;
  const index_t first_col = blockIdx.x % column_tiles * kTile;
  const int down = static_cast<int>(threadIdx.x) / kSide;
  const int across = static_cast<int>(threadIdx.x) % kSide;
  float sums[kEach][kEach] = {};
  bring(a, b, first_row, first_col, 0, 0, s);
  int step = 0;
  for (index_t depth = 0; depth < a.cols; depth += kDepth, step ^= 1) {
    wait_for_copies();
    __syncthreads();  // these tiles are there, and nobody reads the others any more
    if (depth + kDepth < a.cols) bring(a, b, first_row, first_col, depth + kDepth, step ^ 1, s);
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      float left[kEach];
      float right[kEach];
      read_quads<kEach>(s.a[step][k], down, left);
      read_quads<kEach>(s.b[step][k], across, right);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) sums[i][j] = std::fma(left[i], right[j], sums[i][j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const index_t row = first_row + (i / kQuad * kSide + down) * kQuad + i % kQuad;
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const index_t col = first_col + (j / kQuad * kSide + across) * kQuad + j % kQuad;
      if (row >= c.rows || col >= c.cols) continue;
      float* const entry = c.data + row * c.stride + col;
      if (into == Into::store) *entry = sums[i][j];
      if (into == Into::add) *entry += sums[i][j];
      if (into == Into::subtract) *entry -= sums[i][j];
    }
  }
}

template <int kTile>
index_t tiles_of(const DenseView<float>& c) {
  return ceil_div(c.rows, kTile) * ceil_div(c.cols, kTile);
}

template <int kTile>
void launch_tiles(Stream stream, const DenseView<const float>& a, const DenseView<const float>& b, Into into,
                  const DenseView<float>& c) {
  const Grid grid{
      .x = static_cast<unsigned>(tiles_of<kTile>(c)), .threads = kThreads, .shared_bytes = sizeof(Shared<kTile>)};
  launch(stream, grid, &product_kernel<kTile>, a, b, into, c);
}

}  // namespace

void dense_product(Stream stream, const DenseView<const float>& a, const DenseView<const float>& b, Into into,
                   const DenseView<float>& c) {
  constexpr int kLarge = 128;
  constexpr int kSmall = 64;
  if (tiles_of<kLarge>(c) >= kFewTiles) return launch_tiles<kLarge>(stream, a, b, into, c);
  launch_tiles<kSmall>(stream, a, b, into, c);
}

}  // namespace mpfast::cuda
