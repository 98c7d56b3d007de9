// How a tile of B lies in shared memory: what the kernel and its plan must agree on.
//
// The tile is stored by coordinate: word q of coordinate j holds entry j of panel rows qP to qP + P - 1 as stored in
// memory, P = 2 for types of 16 bits and 1 otherwise; of codes, as the numbers that they stand for, in single
// precision. A row of kTileWords words is padded by one: with an odd stride, threads that read one word of 32
// consecutive coordinates hit 32 banks, and so do threads that read the 16 words of two coordinates 16 apart.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/types.hpp"

namespace mpfast::cuda {

constexpr int kTileWords = 16;
constexpr int kTileStride = kTileWords + 1;
constexpr int kWarp = 32;
// Columns of y that are summed at a time: bounds the registers and the shared memory of that sum.
constexpr int kColumnGroup = 4;

constexpr std::size_t word_bytes(DType storage) { return size_of(storage) == 8 ? 8 : 4; }
constexpr int rows_per_word(DType storage) { return static_cast<int>(word_bytes(storage) / size_of(storage)); }

template <DType storage>
using TileWord = std::conditional_t<word_bytes(storage) == 8, std::uint64_t, std::uint32_t>;

template <DType storage>
struct Tile {
  using Word = TileWord<storage>;
  using Bits = typename Entry<storage>::Bits;
  static constexpr int kPerWord = rows_per_word(storage);
  static_assert(kPerWord <= 2, "loaders bring words of one or two entries");
  static constexpr int kRows = kTileWords * kPerWord;

  static constexpr Bits entry(Word word, int e) { return static_cast<Bits>(word >> (8 * sizeof(Bits) * e)); }
};

// kCount values that are read at once.
template <class Real, int kCount>
struct alignas(sizeof(Real) * kCount > 16 ? 16 : sizeof(Real) * kCount) Pack {
  Real values[kCount];
};

// Vectors that kernels are compiled for: b is rounded up to one of these. Fewer for double, which is rare.
constexpr int padded_width(int width, std::size_t real_bytes) {
  if (real_bytes == 8) return width <= 8 ? 8 : 32;
  return width <= 4 ? 4 : width <= 8 ? 8 : width <= 16 ? 16 : 32;
}

// Coordinates that each thread owns: their sums of width vectors each stay in its registers.
constexpr int coordinates_per_thread(int width, std::size_t real_bytes) {
  const int registers = real_bytes == 8 ? 8 : 16;
  return width >= registers ? 1 : registers / width;
}

// Threads of a block at most, as its registers allow.
constexpr int most_threads(std::size_t real_bytes) { return real_bytes == 8 ? 256 : 512; }

// Bytes of dynamic shared memory, in the order they lie there: the tile, X, the warps' sums of y, two generations of
// the block's sum, the cluster's sum.
struct ProductMemory {
  std::size_t x = 0;
  std::size_t warp_sums = 0;
  std::size_t block_sums = 0;
  std::size_t y = 0;
  std::size_t end = 0;

  constexpr ProductMemory(DType storage, std::size_t real_bytes, int width, int threads) {
    const auto rows = static_cast<std::size_t>(kTileWords * rows_per_word(storage));
    const auto coordinates = static_cast<std::size_t>(threads * coordinates_per_thread(width, real_bytes));
    const auto columns = static_cast<std::size_t>(width);
    x = padded(coordinates * kTileStride * word_bytes(storage));
    warp_sums = x + coordinates * columns * real_bytes;
    block_sums = warp_sums + static_cast<std::size_t>(threads / kWarp) * rows * kColumnGroup * real_bytes;
    y = block_sums + 2 * rows * columns * real_bytes;
    end = y + rows * columns * real_bytes;
  }

 private:
  static constexpr std::size_t padded(std::size_t bytes) { return (bytes + 15) / 16 * 16; }
};

}  // namespace mpfast::cuda
