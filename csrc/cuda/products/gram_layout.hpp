// How a Gram product lies in a block's shared memory: what its kernel and its plan must agree on.
//
// A tile is a few rows of B in the coordinates of one block. It comes in pieces that are contiguous in B, two layouts:
//   coordinates are neighbours in memory: a piece is one row of a thread's own coordinates, pieces lie by row, then by
//     thread;
//   rows are neighbours: a piece is 16 bytes of one coordinate, pieces lie by coordinate. Their order in a coordinate
//   is
//     turned from one coordinate to the next, so that eight lanes which read the same piece of neighbouring coordinates
//     hit all 32 banks.
// Either way the entries that a thread multiplies were copied by its own warp, or by a team of two: no barrier of the
// block guards a tile. Where rows are neighbours, warps in teams share coordinates and divide the rows of a tile, so
// that 64 bytes of a coordinate are read at a time; where that takes too many blocks, there is one warp, and 32 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.hpp"
#include "core/types.hpp"
#include "cuda/products/product_layout.hpp"

namespace mpfast::cuda {

// Tiles in shared memory: one that is multiplied with X, the one before, whose y is on its way through the cluster, and
// one that arrives from memory.
constexpr int kGramStages = 3;
constexpr int kPieceBytes = 16;
// Of a block: enough that each sums up at most one value of y.
constexpr int kLeastGramThreads = 128;
constexpr int kMostGramThreads = 512;
constexpr int kMostClusterBlocks = 8;

// Whether tensor cores form the products.
constexpr bool by_tensor_cores(DType storage, std::size_t real_bytes) {
  return storage == DType::bfloat16 && real_bytes == 4;
}

// Vectors that kernels are compiled for. More are taken in groups.
constexpr int kMostGramWidth = 8;
constexpr int gram_width(int width, DType storage, std::size_t real_bytes) {
  return width <= 4 && real_bytes == 4 && !by_tensor_cores(storage, real_bytes) ? 4 : 8;
}

// Coordinates of a thread; its parts of X and Z stay in its registers.
constexpr int gram_coordinates(std::size_t real_bytes) { return real_bytes == 8 ? 2 : 4; }

// Rows of a tile for each warp of a team: 32 bytes of a coordinate, a sector of the cache, or 64.
constexpr int gram_rows(DType storage) { return 8 * rows_per_word(storage); }

constexpr bool rows_are_neighbours(const MatrixView& b) { return b.row_stride == 1 && b.col_stride != 1; }

// Bytes of dynamic shared memory, in the order they lie there: the tiles, and two generations each of the warps' sums
// of y, of what the blocks of the cluster send, and of the count of what has arrived.
struct GramMemory {
  std::size_t tile = 0;  // bytes of one
  std::size_t warp_sums = 0;
  std::size_t parts = 0;
  std::size_t arrivals = 0;
  std::size_t end = 0;

  constexpr GramMemory(DType storage, std::size_t real_bytes, int width, int threads, int team) {
    const auto rows = static_cast<std::size_t>(gram_rows(storage));
    const auto values = rows * static_cast<std::size_t>(width) * real_bytes;
    tile = static_cast<std::size_t>(threads * gram_coordinates(real_bytes)) * rows * size_of(storage);
    warp_sums = kGramStages * tile;
    parts = warp_sums + 2 * static_cast<std::size_t>(threads / kWarp) * values;
    arrivals = parts + 2 * static_cast<std::size_t>(kMostClusterBlocks * team) * values;
    end = arrivals + 2 * sizeof(std::uint64_t);
  }
};

}  // namespace mpfast::cuda
