// What a block of threads learns of the energies of B from a tile in its shared memory (see product_pass.hpp).
#pragma once

#include "core/dtype.hpp"
#include "cuda/machine/platform.hpp"
#include "cuda/products/product_kernels.hpp"
#include "cuda/products/product_layout.hpp"

namespace mpfast::cuda {

// The squares of the entries of one tile, as scaled and with their factors, in double.
template <DType storage, class Real>
class TileSquares {
 public:
  __device__ TileSquares(const ProductArguments<Real>& a, const TileWord<storage>* tile, index_t first, index_t row0)
      : a_(a), tile_(tile), first_(first), row0_(row0) {}

  // Row `row` of the tile at coordinate j; zero beyond the last row of B.
  __device__ double at(int row, int j) const {
    using Words = Tile<storage>;
    constexpr int kPerWord = Words::kPerWord;
    if (row0_ + row >= a_.b.rows) return 0;
    const TileWord<storage> word = tile_[j * kTileStride + row / kPerWord];
    double value = Entry<storage>::widen(Words::entry(word, row % kPerWord));
    if (a_.factors.given()) value *= a_.factors.rows[row0_ + row] * a_.factors.cols[first_ + j];
    value *= a_.entry_scale;
    return value * value;
  }

 private:
  const ProductArguments<Real>& a_;
  const TileWord<storage>* tile_;
  index_t first_;
  index_t row0_;
};

// Adds a tile's squares to the block's energies: of rows, each of which is in one tile of the block, and of
// coordinates, each thread's own, over the panels of the chunk. `scratch` has room for a double per warp and row of a
// tile; begins and ends with the block in step. Reads the tile twice, from shared memory, and each coordinate's sum
// from the cache.
template <DType storage, class Real>
__device__ void add_energies(const ProductArguments<Real>& a, const TileSquares<storage, Real>& squares, index_t first,
                             int coordinates, index_t row0, bool first_panel, double* scratch) {
  constexpr int kPerWord = rows_per_word(storage);
  constexpr int kRows = kTileWords * kPerWord;
  const int t = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  double* const cols = a.col_energies + blockIdx.y * a.b.cols + first;
  for (int j = t; j < coordinates; j += threads) {
    double sum = first_panel ? 0.0 : cols[j];
#pragma unroll 4
    for (int row = 0; row < kRows; ++row) sum += squares.at(row, j);
    cols[j] = sum;
  }
  // Half-warps take a coordinate each, threads one word of it.
  const int lane = t % kWarp;
  const int q = t % kTileWords;
  double sums[kPerWord] = {};
  for (int j = t / kTileWords; j < coordinates; j += threads / kTileWords) {
#pragma unroll
    for (int e = 0; e < kPerWord; ++e) sums[e] += squares.at(q * kPerWord + e, j);
  }
#pragma unroll
  for (int e = 0; e < kPerWord; ++e) {
    const double other = __shfl_xor_sync(0xffffffffU, sums[e], kTileWords);
    if (lane < kTileWords) scratch[t / kWarp * kRows + q * kPerWord + e] = sums[e] + other;
  }
  __syncthreads();
  for (int row = t; row < kRows; row += threads) {
    double total = 0;
    for (int warp = 0; warp < threads / kWarp; ++warp) total += scratch[warp * kRows + row];
    if (row0 + row < a.b.rows) a.row_energies[blockIdx.x * a.b.rows + row0 + row] = total;
  }
  __syncthreads();
}

}  // namespace mpfast::cuda
