// How a block of threads loads tiles of a matrix of entries (see product_pass.hpp).
#pragma once

#include <cstdint>

#include "core/dtype.hpp"
#include "core/types.hpp"
#include "cuda/decoding/source.hpp"
#include "cuda/machine/platform.hpp"
#include "cuda/products/product_layout.hpp"

namespace mpfast::cuda {

// Brings tiles from memory into shared memory. Neighbouring threads take neighbours in memory; what lies outside B is
// zero.
template <DType storage>
class EntryLoader {
 public:
  static constexpr DType kStorage = storage;
  using Word = TileWord<storage>;
  using Bits = typename Entry<storage>::Bits;
  static constexpr int kPerWord = Tile<storage>::kPerWord;

  // Coordinates [first, first + coordinates) of B; shared memory has room for `room` of them, a power of two.
  __device__ EntryLoader(const Source& source, index_t first, int coordinates, int room)
      : b_(source.entries()), first_(first), coordinates_(coordinates), room_(room) {
    const MatrixView& b = b_;
    by_rows_ = b.col_stride != 1 && (b.row_stride == 1 || b.row_stride == -1);
    // 16-bit entries travel in pairs where two neighbours in memory are a whole word.
    const bool aligned = reinterpret_cast<std::uintptr_t>(b.data) % sizeof(Word) == 0;
    if (kPerWord == 1 || (b.row_stride == 1 && b.col_stride % 2 == 0 && aligned)) {
      way_ = Way::whole_words;
    } else if (b.col_stride == 1 && b.row_stride % 2 == 0 && first % 2 == 0 && aligned) {
      way_ = Way::coordinate_pairs;
    }
  }

  // Begins to load the tile that starts at row0; it is there after wait_for_copies() and a barrier.
  __device__ void start(index_t row0, Word* tile) const {
    if (way_ == Way::coordinate_pairs) return start_pairs(row0, tile);
    const auto rows = static_cast<int>(row0 + kRows <= b_.rows ? kRows : b_.rows - row0);
    for_each_line(row0, [&](Line line) {
#pragma unroll 4
      for (int n = 0; n < line.words; ++n) {
        Word* const to = tile + line.coordinate * kTileStride + line.word;
        const int left = rows - line.word * kPerWord;
        if (line.coordinate >= coordinates_ || left <= 0) {
          *to = 0;
        } else if (way_ == Way::whole_words && left >= kPerWord) {
          copy_word_async(to, reinterpret_cast<const Word*>(line.from));
        } else {
          *to = gathered(line.from, left);
        }
        line.coordinate += line.coordinate_step;
        line.word += line.word_step;
        line.from += line.from_step;
      }
    });
  }

  // Asks for the tile that starts at row0 to be brought into the second-level cache.
  __device__ void prefetch(index_t row0) const {
    constexpr int kLine = 128;
    const int t = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x);
    const auto rows = static_cast<int>(row0 + kRows <= b_.rows ? kRows : b_.rows - row0);
    if (by_rows_) {
      for (int j = t; j < coordinates_; j += threads) prefetch_to_l2(address(row0, j));
    } else if (b_.col_stride == 1) {
      constexpr int kStep = kLine / static_cast<int>(sizeof(Bits));
      const int steps = (coordinates_ + kStep - 1) / kStep;
      for (int i = t; i < rows * steps; i += threads) prefetch_to_l2(address(row0 + i / steps, i % steps * kStep));
    }
  }

 private:
  enum class Way { single_entries, whole_words, coordinate_pairs };
  static constexpr int kRows = Tile<storage>::kRows;

  // Words of a tile in a row: where the first one is, in the tile and in memory, and the steps to the next.
  struct Line {
    int words;
    int coordinate;
    int word;
    const Bits* from;
    int coordinate_step;
    int word_step;
    index_t from_step;
  };

  // This thread's share of a tile: along the coordinates where panel rows are contiguous in memory (so that
  // neighbouring threads take neighbouring rows), along the words of a coordinate otherwise.
  template <class Function>
  __device__ void for_each_line(index_t row0, const Function& function) const {
    const int t = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x);
    if (by_rows_) {
      const int word = t % kTileWords;
      const int first = t / kTileWords;
      const int step = threads / kTileWords;
      function(Line{room_ / step, first, word, address(row0 + word * kPerWord, first), step, 0, step * b_.col_stride});
    } else {
      for (int j = t; j < room_; j += threads) {
        function(Line{kTileWords, j, 0, address(row0, j), 0, 1, kPerWord * b_.row_stride});
      }
    }
  }

  // Words of memory hold two coordinates of a row, words of the tile two rows of a coordinate. Where there are fewer
  // pairs of coordinates than threads, several threads share a pair.
  __device__ void start_pairs(index_t row0, Word* tile) const {
    const int t = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x);
    const int across = threads < room_ / 2 ? threads : room_ / 2;
    const int sharers = threads / across;
    const auto rows = static_cast<int>(row0 + kRows <= b_.rows ? kRows : b_.rows - row0);
    for (int j = t % across * 2; j < room_; j += 2 * across) {
      const int first = t / across;
      const Bits* from = address(row0 + first * kPerWord, j);
      const int given = coordinates_ - j;
#pragma unroll 4
      for (int q = first; q < kTileWords; q += sharers) {
        const Word upper = pair_at(from, given, rows - q * kPerWord);
        const Word lower = pair_at(from + b_.row_stride, given, rows - q * kPerWord - 1);
        tile[j * kTileStride + q] = (upper & 0xffffU) | lower << 16;
        tile[(j + 1) * kTileStride + q] = upper >> 16 | (lower & 0xffff0000U);
        from += sharers * kPerWord * b_.row_stride;
      }
    }
  }

  // Two coordinates of a row, if as many are given and the row is one of the `left` rows that are.
  __device__ static Word pair_at(const Bits* from, int given, int left) {
    if (given <= 0 || left <= 0) return 0;
    return given >= 2 ? *reinterpret_cast<const Word*>(from) : Word{from[0]};
  }

  __device__ const Bits* address(index_t row, int j) const {
    return static_cast<const Bits*>(b_.data) + row * b_.row_stride + (first_ + j) * b_.col_stride;
  }

  // A word of the tile from entries one by one; `left` rows are given.
  __device__ Word gathered(const Bits* from, int left) const {
    if constexpr (kPerWord == 2) {
      return left >= 2 ? from[0] | static_cast<Word>(from[b_.row_stride]) << 16 : from[0];
    } else {
      return from[0];
    }
  }

  MatrixView b_;
  index_t first_;
  int coordinates_;
  int room_;
  bool by_rows_ = false;
  Way way_ = Way::single_entries;
};

}  // namespace mpfast::cuda
