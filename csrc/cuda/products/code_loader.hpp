// How a block of threads loads tiles of a matrix of codes: as the numbers that they stand for (see product_pass.hpp).
#pragma once

#include <cstdint>

#include "core/coded_matrix.hpp"
#include "core/dtype.hpp"
#include "core/types.hpp"
#include "cuda/decoding/source.hpp"
#include "cuda/machine/platform.hpp"
#include "cuda/products/product_layout.hpp"

namespace mpfast::cuda {

// Entries of a row, counted from the first one that somebody works on, in the blocks that share a scale. In 32 bits,
// which divide in a fifth of the time of 64; no tile has as many entries as a block is cut off at.
class Blocks {
 public:
  // `start`: the first entry's place behind the start of the row's first block.
  __device__ Blocks(index_t start, index_t width)
      : first_(start / width), left_(capped(width - start % width)), width_(capped(width)) {}

  // Of the first entry, within the row.
  __device__ index_t first() const { return first_; }
  // Blocks from there to that of entry i.
  __device__ unsigned to(unsigned i) const { return i < left_ ? 0 : 1 + (i - left_) / width_; }
  // The entry that the block after the next `blocks` ones begins with.
  __device__ unsigned end(unsigned blocks) const { return left_ + blocks * width_; }
  __device__ unsigned width() const { return width_; }

 private:
  static __device__ unsigned capped(index_t entries) {
    constexpr index_t kMost = index_t{1} << 30;
    return static_cast<unsigned>(entries < kMost ? entries : kMost);
  }

  index_t first_;
  unsigned left_;
  unsigned width_;
};

// The scales of entries of a row, one after the other from entry i on.
class RowScales {
 public:
  // `scales`: of the row.
  __device__ RowScales(const float* scales, const Blocks& blocks, unsigned i) : width_(blocks.width()) {
    const unsigned block = blocks.to(i);
    at_ = scales + blocks.first() + block;
    end_ = blocks.end(block);
    scale_ = *at_;
  }

  __device__ float of(unsigned i) {
    if (i == end_) {
      scale_ = *++at_;
      end_ += width_;
    }
    return scale_;
  }

 private:
  const float* at_;
  unsigned end_;
  unsigned width_;
  float scale_;
};

// Reads every code once, by the word, and writes its value times its scale into the tile, rounded to single precision
// as everywhere: some ten operations for an entry. Where the matrix's rows are B's, a warp takes 32 coordinates of as
// many rows as a word has codes at a time: threads that are neighbours along the row read neighbouring words, and what
// they write at once is in 32 banks. Else a thread takes what the panel has of a row of the matrix, which is a
// coordinate of B. Each word of the tile is written by one thread, to zero outside B.
class CodeLoader {
 public:
  static constexpr DType kStorage = DType::float32;
  using Word = TileWord<kStorage>;

  // As of EntryLoader.
  __device__ CodeLoader(const Source& b, index_t first, int coordinates, int room)
      : codes_(b.codes()),
        rows_(b.rows),
        first_(first),
        coordinates_(coordinates),
        room_(room),
        along_(codes_.swapped ? 0 : codes_.skipped + first, codes_.matrix.width) {}

  // The tile that starts at row0 is there after a barrier.
  __device__ void start(index_t row0, Word* tile) const {
    dispatch(codes_.matrix.type, [&]<Code code>() {
      if (codes_.swapped) {
        load_columns<code>(row0, tile);
      } else {
        load_rows<code>(row0, tile);
      }
    });
  }

  // Asks for the codes and scales of the tile that starts at row0 to be brought into the second-level cache.
  __device__ void prefetch(index_t row0) const {
    const CodedMatrix& matrix = codes_.matrix;
    const index_t in_a_byte = codes_in_a_byte(matrix.type);
    constexpr auto kScale = static_cast<index_t>(sizeof(float));
    if (codes_.swapped) {
      const index_t block = (codes_.skipped + row0) / matrix.width;
      prefetch_lines(row_of_codes(first_) + row0 / in_a_byte, matrix.row_stride, coordinates_, 1);
      prefetch_lines(row_of_scales(first_) + block, matrix.scale_stride * kScale, coordinates_, 1);
    } else {
      const auto blocks = static_cast<int>(along_.to(static_cast<unsigned>(coordinates_ - 1)) + 1);
      const auto bytes = static_cast<int>(ceil_div(coordinates_, in_a_byte));
      prefetch_lines(row_of_codes(row0) + first_ / in_a_byte, matrix.row_stride, rows_from(row0), bytes);
      prefetch_lines(row_of_scales(row0) + along_.first(), matrix.scale_stride * kScale, rows_from(row0),
                     blocks * static_cast<int>(kScale));
    }
  }

 private:
  static constexpr int kRows = Tile<kStorage>::kRows;
  using CodeWord = std::uint32_t;

  template <Code code>
  static constexpr int kPerWord = 32 / FormatOf<code>::kBits;

  template <Code code>
  static __device__ Word number(CodeWord word, int e, float scale) {
    constexpr int kBits = FormatOf<code>::kBits;
    const CodeWord bits = word >> (kBits * e) & ((1U << kBits) - 1);
    return __builtin_bit_cast(Word, value_of<code>(bits) * scale);
  }

  // Rows of the tile are those of the matrix.
  template <Code code>
  __device__ void load_rows(index_t row0, Word* tile) const {
    constexpr int kAcross = kWarp / kPerWord<code>;
    constexpr int kDown = kPerWord<code>;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    const int rows = rows_from(row0);
    for (int part = static_cast<int>(threadIdx.x) / kWarp; part < room_ / kWarp; part += warps) {
      const int j = part * kWarp + lane % kAcross * kPerWord<code>;
      const int given = coordinates_ - j;
      const index_t byte = (first_ + j) * FormatOf<code>::kBits / 8;
      CodeWord words[kRows / kDown];
#pragma unroll
      for (int n = 0; n < kRows / kDown; ++n) {
        const int i = lane / kAcross + n * kDown;
        const bool there = given > 0 && i < rows;
        words[n] = there ? *reinterpret_cast<const CodeWord*>(row_of_codes(row0 + i) + byte) : 0;
      }
#pragma unroll
      for (int n = 0; n < kRows / kDown; ++n) {
        const int i = lane / kAcross + n * kDown;
        Word* const to = tile + j * kTileStride + i;
        if (given <= 0 || i >= rows) {
          for (int e = 0; e < kPerWord<code>; ++e) to[e * kTileStride] = 0;
          continue;
        }
        RowScales scales(row_of_scales(row0 + i), along_, static_cast<unsigned>(j));
#pragma unroll
        for (int e = 0; e < kPerWord<code>; ++e) {
          const bool there = e < given;
          to[e * kTileStride] = there ? number<code>(words[n], e, scales.of(static_cast<unsigned>(j + e))) : 0;
        }
      }
    }
  }

  // Rows of the tile are columns of the matrix.
  template <Code code>
  __device__ void load_columns(index_t row0, Word* tile) const {
    constexpr int kWords = kRows / kPerWord<code>;
    const int rows = rows_from(row0);
    const Blocks along(codes_.skipped + row0, codes_.matrix.width);
    for (int j = static_cast<int>(threadIdx.x); j < room_; j += static_cast<int>(blockDim.x)) {
      Word* const to = tile + j * kTileStride;
      if (j >= coordinates_) {
        for (int q = 0; q < kRows; ++q) to[q] = 0;
        continue;
      }
      const std::uint8_t* const from = row_of_codes(first_ + j) + row0 * FormatOf<code>::kBits / 8;
      const auto words = *reinterpret_cast<const Pack<CodeWord, kWords>*>(from);
      RowScales scales(row_of_scales(first_ + j), along, 0);
#pragma unroll
      for (int q = 0; q < kRows; ++q) {
        const CodeWord word = words.values[q / kPerWord<code>];
        const bool there = q < rows;
        to[q] = there ? number<code>(word, q % kPerWord<code>, scales.of(static_cast<unsigned>(q))) : 0;
      }
    }
  }

  // Rows of the tile that are in B.
  __device__ int rows_from(index_t row0) const {
    return static_cast<int>(row0 + kRows <= rows_ ? kRows : rows_ - row0);
  }

  __device__ const std::uint8_t* row_of_codes(index_t row) const {
    return codes_.matrix.codes + row * codes_.matrix.row_stride;
  }
  __device__ const float* row_of_scales(index_t row) const {
    return codes_.matrix.scales + row * codes_.matrix.scale_stride;
  }

  // The first `bytes` bytes of every row.
  static __device__ void prefetch_lines(const void* rows, index_t pitch, int count, int bytes) {
    constexpr int kLine = 128;
    const int lines = (bytes + kLine - 1) / kLine;
    for (int i = static_cast<int>(threadIdx.x); i < count * lines; i += static_cast<int>(blockDim.x)) {
      prefetch_to_l2(static_cast<const char*>(rows) + i / lines * pitch + i % lines * kLine);
    }
  }

  Codes codes_;
  index_t rows_;
  index_t first_;
  int coordinates_;
  int room_;
  Blocks along_;  // of the coordinates, where these are entries of a row
};

}  // namespace mpfast::cuda
