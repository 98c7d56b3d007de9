// Going through the entries of matrices of any strides in row-major order, in pieces that threads share.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "core/types.hpp"
#include "cpu/machine/team.hpp"
#include "cpu/masks/masks.hpp"

namespace mpfast::cpu {

constexpr index_t kBlockEntries = index_t{1} << 17;  // of one task: 0.1 ms of work, so cancelling is prompt
constexpr index_t kTileEntries = index_t{1} << 13;   // gathered at a time when rows are not contiguous; stays in L1/L2
constexpr index_t kTileColumns = 256;
constexpr index_t kShortRow = 64;  // contiguous rows below this length are gathered too, to give the kernels long runs

// A piece of one matrix that is contiguous in row-major order: whole rows, or a stretch of one row.
struct Block {
  index_t matrix = 0;
  index_t row = 0;
  index_t rows = 0;
  index_t col = 0;
  index_t cols = 0;

  index_t size() const { return rows * cols; }
};

// The same matrices with entries in the same row-major order, as one long row each where memory allows it.
std::vector<ScoredMatrix> flattened(std::span<const ScoredMatrix> matrices);

// Cuts by the shapes alone. Stretches of a row are multiples of `unit` long.
std::vector<Block> cut_into_blocks(std::span<const ScoredMatrix> matrices, index_t unit);

// Counts the non-finite entries of one of the matrices. Only reached on the way to an error; throws MatrixChanged when
// there is none.
NonFinite describe_nonfinite(Team& team, std::span<const ScoredMatrix> matrices, index_t matrix);

// One worker's smallest index of a matrix with a non-finite entry; a cache line each.
struct alignas(64) FirstBad {
  index_t matrix = -1;
  void see(index_t other) {
    if (matrix < 0 || other < matrix) matrix = other;
  }
};

inline index_t first_bad(const std::vector<FirstBad>& workers) {
  FirstBad all;
  for (const FirstBad& worker : workers) {
    if (worker.matrix >= 0) all.see(worker.matrix);
  }
  return all.matrix;
}

// The entries of a tile, in row-major order, for an element size of 2, 4 or 8 bytes.
void gather(const MatrixView& w, const Block& tile, std::byte* out);

inline const std::byte* address(const MatrixView& w, index_t row, index_t col) {
  const auto offset = (row * w.row_stride + col * w.col_stride) * static_cast<index_t>(size_of(w.dtype));
  return static_cast<const std::byte*>(w.data) + offset;
}

// Calls visit(entries, count, flat) for runs of consecutive entries that together make up the block, each a multiple of
// `unit` long; flat is the row-major index of the first. Runs of a block of one row come in order.
template <class Visit>
void for_each_run(const MatrixView& w, const Block& block, index_t unit, Visit&& visit) {
  if (w.col_stride == 1 && (block.rows == 1 || block.cols >= kShortRow)) {
    for (index_t i = block.row; i < block.row + block.rows; ++i) {
      visit(address(w, i, block.col), block.cols, i * w.cols + block.col);
    }
    return;
  }
  alignas(64) std::byte scratch[kTileEntries * sizeof(double)];
  const index_t width = block.cols <= kTileColumns ? block.cols : kTileColumns / unit * unit;
  const index_t height = kTileEntries / width;
  for (index_t row = block.row; row < block.row + block.rows; row += height) {
    const index_t rows = std::min(height, block.row + block.rows - row);
    for (index_t col = block.col; col < block.col + block.cols; col += width) {
      const Block tile = {block.matrix, row, rows, col, std::min(width, block.col + block.cols - col)};
      gather(w, tile, scratch);
      if (tile.cols == w.cols) {
        visit(static_cast<const std::byte*>(scratch), tile.size(), row * w.cols);
        continue;
      }
      const auto row_bytes = static_cast<std::size_t>(tile.cols) * size_of(w.dtype);
      for (index_t i = 0; i < rows; ++i) {
        visit(static_cast<const std::byte*>(scratch) + static_cast<std::size_t>(i) * row_bytes, tile.cols,
              (row + i) * w.cols + col);
      }
    }
  }
}

}  // namespace mpfast::cpu
