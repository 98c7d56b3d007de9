// The kernel of a pass over B, whatever brings the tiles of B into shared memory: a Loader, with the type of the
// entries there as kStorage.
//
// A block of threads owns a slice of S coordinates: its part of X lies in shared memory, and in a Gram product its part
// of Z in registers, S/T coordinates of b vectors per thread. It goes through the panels of its chunk, one tile (S
// coordinates x 16 words) at a time:
//   1. the tile is loaded from memory, or, since it was asked for while the last one was worked on, from the
//      second-level cache; meanwhile the other blocks of the multiprocessor work;
//   2. y = tile X: a warp takes 32 coordinates at a time, half-warps 16 each, a thread one word of every coordinate;
//      then the two halves, the warps and the blocks of the cluster are added up, each in a fixed order;
//   3. Gram product: z += tile^T y, each thread for its own coordinates, y broadcast from shared memory.
// Bytes: m n entries, or codes and their scales, read once, plus b N and, per chunk, b N (Gram) or b M (plain, per
// slice) vector entries. Flops: 4 m n b (Gram) or 2 m n b (plain). Shared memory sees every word three times: one
// store, and one load in steps 2 and 3 each. Coordinates or panel rows may be the contiguous ones: only the order in
// which threads fetch the tile differs. No sum depends on timing, and no atomics are used.
#pragma once

#include "core/dtype.hpp"
#include "cuda/machine/platform.hpp"
#include "cuda/products/product_kernels.hpp"
#include "cuda/products/product_layout.hpp"
#include "cuda/products/tile_energies.hpp"
#include "cuda/products/tile_stats.hpp"

namespace mpfast::cuda {

// The block's shared memory.
template <DType storage, class Real>
struct PassMemory {
  TileWord<storage>* tile;
  Real* x;           // [coordinate][width]
  Real* warp_sums;   // [warp][row][kColumnGroup]
  Real* block_sums;  // [2][row][width]
  Real* y;           // [row][width]

  __device__ PassMemory(int width, int threads) {
    const ProductMemory memory(storage, sizeof(Real), width, threads);
    auto* bytes = shared_memory<unsigned char>();
    tile = reinterpret_cast<TileWord<storage>*>(bytes);
    x = reinterpret_cast<Real*>(bytes + memory.x);
    warp_sums = reinterpret_cast<Real*>(bytes + memory.warp_sums);
    block_sums = reinterpret_cast<Real*>(bytes + memory.block_sums);
    y = reinterpret_cast<Real*>(bytes + memory.y);
  }
};

// sums (rows x kWidth) = tile X over the coordinates of this block. Begins and ends with the block in step.
template <DType storage, class Real, int kWidth, int kEach>
__device__ void block_product(const PassMemory<storage, Real>& shared, int coordinates, Real* sums) {
  using Words = Tile<storage>;
  constexpr int kPerWord = Words::kPerWord;
  constexpr int kGroup = kColumnGroup;
  constexpr int kHalf = kWarp / 2;
  const int t = static_cast<int>(threadIdx.x);
  const int warp = t / kWarp;
  const int lane = t % kWarp;
  const int q = lane % kHalf;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  for (int column = 0; column < kWidth; column += kGroup) {
    Real sum[kPerWord][kGroup] = {};
    for (int g = 0; g < kEach; ++g) {
      const int base = (warp * kEach + g) * kWarp;
      if (base >= coordinates) break;
      const int j = base + lane / kHalf * kHalf;
#pragma unroll 4
      for (int i = 0; i < kHalf; ++i) {
        const auto word = shared.tile[(j + i) * kTileStride + q];
        const auto x = *reinterpret_cast<const Pack<Real, kGroup>*>(shared.x + (j + i) * kWidth + column);
#pragma unroll
        for (int e = 0; e < kPerWord; ++e) {
          const auto entry = static_cast<Real>(Entry<storage>::widen(Words::entry(word, e)));
#pragma unroll
          for (int k = 0; k < kGroup; ++k) sum[e][k] += entry * x.values[k];
        }
      }
    }
#pragma unroll
    for (int e = 0; e < kPerWord; ++e) {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        const Real other = __shfl_xor_sync(0xffffffffU, sum[e][k], kHalf);
        if (lane < kHalf) {
          shared.warp_sums[(warp * Words::kRows + q * kPerWord + e) * kGroup + k] = sum[e][k] + other;
        }
      }
    }
    __syncthreads();
    for (int i = t; i < Words::kRows * kGroup; i += static_cast<int>(blockDim.x)) {
      Real total = 0;
      for (int w = 0; w < warps; ++w) total += shared.warp_sums[w * Words::kRows * kGroup + i];
      sums[i / kGroup * kWidth + column + i % kGroup] = total;
    }
    __syncthreads();
  }
}

// z += tile^T y for this thread's coordinates: t, t + T, ...
template <DType storage, class Real, int kWidth, int kEach>
__device__ void add_transposed_product(const PassMemory<storage, Real>& shared, Real (&z)[kEach][kWidth]) {
  using Words = Tile<storage>;
  using Values = Pack<Real, kColumnGroup>;
  const int t = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
#pragma unroll 1
  for (int q = 0; q < kTileWords; ++q) {
    TileWord<storage> words[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) words[i] = shared.tile[(t + threads * i) * kTileStride + q];
#pragma unroll
    for (int e = 0; e < Words::kPerWord; ++e) {
      Real entries[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) entries[i] = static_cast<Real>(Entry<storage>::widen(Words::entry(words[i], e)));
#pragma unroll
      for (int column = 0; column < kWidth; column += kColumnGroup) {
        const auto y = *reinterpret_cast<const Values*>(shared.y + (q * Words::kPerWord + e) * kWidth + column);
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
#pragma unroll
          for (int k = 0; k < kColumnGroup; ++k) z[i][column + k] += entries[i] * y.values[k];
        }
      }
    }
  }
}

template <class Loader, class Real, int kWidth, ProductKind kKind>
__global__ void __launch_bounds__(most_threads(sizeof(Real))) product_kernel(ProductArguments<Real> a) {
  constexpr DType storage = Loader::kStorage;
  using Words = Tile<storage>;
  constexpr int kEach = coordinates_per_thread(kWidth, sizeof(Real));
  const int t = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const unsigned blocks = kKind == ProductKind::gram ? gridDim.x : 1;
  const PassMemory<storage, Real> shared(kWidth, threads);
  const index_t first = blockIdx.x * a.slice;
  const index_t left = a.b.cols - first;
  const auto coordinates = static_cast<int>(left < a.slice ? left : a.slice);

  for (int i = t; i < kWidth * threads * kEach; i += threads) {
    const int c = i / (threads * kEach);
    const int j = i % (threads * kEach);
    const bool given = c < a.width && j < coordinates;
    Real entry = given ? a.x[c * a.x_stride + first + j] : Real{0};
    if (given && a.factors.given()) entry = weighted(entry, a.factors.cols[first + j]);
    shared.x[j * kWidth + c] = entry * a.x_scale;
  }

  const Loader loader(a.b, first, coordinates, threads * kEach);
  Real z[kKind == ProductKind::gram ? kEach : 1][kKind == ProductKind::gram ? kWidth : 1] = {};
  BlockStats stats;
  const index_t panels = (a.b.rows + Words::kRows - 1) / Words::kRows;
  const index_t begin = blockIdx.y * a.chunk_panels;
  const index_t end = begin + a.chunk_panels < panels ? begin + a.chunk_panels : panels;
  for (index_t panel = begin; panel < end; ++panel) {
    __syncthreads();  // nobody reads the last tile any more
    loader.start(panel * Words::kRows, shared.tile);
    wait_for_copies();
    __syncthreads();
    if (panel + 1 < end) loader.prefetch((panel + 1) * Words::kRows);
    const index_t row0 = panel * Words::kRows;
    if (a.stats != nullptr) add_stats<storage>(a, shared.tile, first, threads * kEach, row0, stats);
    if (a.row_energies != nullptr) {
      const TileSquares<storage, Real> squares(a, shared.tile, first, row0);
      add_energies(a, squares, first, coordinates, row0, panel == begin, reinterpret_cast<double*>(shared.warp_sums));
    }

    Real* const own = shared.block_sums + (panel - begin) % 2 * Words::kRows * kWidth;
    block_product<storage, Real, kWidth, kEach>(shared, coordinates, own);
    if constexpr (kKind == ProductKind::plain) {
      for (int i = t; i < Words::kRows * a.width; i += threads) {
        const int row = i % Words::kRows;
        const int c = i / Words::kRows;
        const index_t at = panel * Words::kRows + row;
        if (at < a.b.rows) a.partial[(blockIdx.x * index_t{a.width} + c) * a.b.rows + at] = own[row * kWidth + c];
      }
    } else {
      cluster_sync(blocks);
      for (int i = t; i < Words::kRows * kWidth; i += threads) {
        Real total = 0;
        for (unsigned rank = 0; rank < blocks; ++rank) total += *shared_memory_of(own + i, rank);
        total = total * a.y_scale[0] * a.y_scale[1];
        const index_t row = row0 + i / kWidth;
        if (a.factors.given() && row < a.b.rows) total = weighted_twice(total, a.factors.rows[row]);
        shared.y[i] = total;
      }
      __syncthreads();
      add_transposed_product<storage, Real, kWidth, kEach>(shared, z);
    }
  }
  if constexpr (kKind == ProductKind::gram) {
    cluster_sync(blocks);  // others may still read this block's sums
    for (int i = 0; i < kEach; ++i) {
      const int j = t + threads * i;
      if (j >= coordinates) continue;
#pragma unroll
      for (int c = 0; c < kWidth; ++c) {
        if (c < a.width) a.partial[(blockIdx.y * index_t{a.width} + c) * a.b.cols + first + j] = z[i][c];
      }
    }
  }
  if (a.stats != nullptr) {
    write_stats(stats, shared_memory<BlockStats>(), a.stats + blockIdx.y * index_t{gridDim.x} + blockIdx.x);
  }
}

// Calls use(kernel) with the kernel of this width.
template <class Loader, class Real, ProductKind kKind, class Use>
auto with_kernel(int width, const Use& use) {
  if (width == 8) return use(&product_kernel<Loader, Real, 8, kKind>);
  if constexpr (padded_width(1, sizeof(Real)) == 4) {
    if (width == 4) return use(&product_kernel<Loader, Real, 4, kKind>);
    if (width == 16) return use(&product_kernel<Loader, Real, 16, kKind>);
  }
  return use(&product_kernel<Loader, Real, 32, kKind>);
}

template <class Loader, class Real>
bool cluster_fits_pass(Stream stream, const ProductPlan& plan) {
  return with_kernel<Loader, Real, ProductKind::gram>(
      plan.width, [&](auto* kernel) { return cluster_fits(stream, plan.grid(ProductKind::gram), kernel); });
}

template <class Loader, class Real>
void launch_pass(Stream stream, ProductKind kind, const ProductPlan& plan, const ProductArguments<Real>& arguments) {
  const auto launched = [&](auto* kernel) { launch(stream, plan.grid(kind), kernel, arguments); };
  if (kind == ProductKind::gram) return with_kernel<Loader, Real, ProductKind::gram>(plan.width, launched);
  with_kernel<Loader, Real, ProductKind::plain>(plan.width, launched);
}

}  // namespace mpfast::cuda
