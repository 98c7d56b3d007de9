#include "cpu/masks/entry_blocks.hpp"

#include <cmath>
#include <cstdint>

#include "core/changed.hpp"
#include "masks/select.hpp"

namespace mpfast::cpu {

namespace {

// The same entries in the same row-major order, as one long row where memory allows it.
MatrixView as_one_row(MatrixView w) {
  if (w.row_stride != w.cols * w.col_stride && w.rows != 1) return w;
  return {w.data, w.dtype, 1, w.rows * w.cols, 0, w.col_stride};
}

template <class Bits>
void gather_tile(const MatrixView& w, const Block& tile, Bits* out) {
  const Bits* data = static_cast<const Bits*>(w.data) + tile.row * w.row_stride + tile.col * w.col_stride;
  // The inner loop follows the smaller stride in memory: each cache line is read once.
  if (std::abs(w.row_stride) < std::abs(w.col_stride)) {
    for (index_t j = 0; j < tile.cols; ++j) {
      for (index_t i = 0; i < tile.rows; ++i) out[i * tile.cols + j] = data[i * w.row_stride + j * w.col_stride];
    }
  } else {
    for (index_t i = 0; i < tile.rows; ++i) {
      for (index_t j = 0; j < tile.cols; ++j) out[i * tile.cols + j] = data[i * w.row_stride + j * w.col_stride];
    }
  }
}

template <DType dtype>
void find_nonfinite(const void* entries, index_t count, index_t flat, NonFinite& found) {
  const auto* bits = static_cast<const typename masks::Stored<dtype>::Bits*>(entries);
  for (index_t i = 0; i < count; ++i) {
    if (masks::magnitude<dtype>(bits[i]) < masks::Stored<dtype>::kInfinity) continue;
    if (found.count == 0 || flat + i < found.first) found.first = flat + i;
    ++found.count;
  }
}

}  // namespace

std::vector<ScoredMatrix> flattened(std::span<const ScoredMatrix> matrices) {
  std::vector<ScoredMatrix> flat(matrices.begin(), matrices.end());
  for (ScoredMatrix& matrix : flat) matrix.entries = as_one_row(matrix.entries);
  return flat;
}

std::vector<Block> cut_into_blocks(std::span<const ScoredMatrix> matrices, index_t unit) {
  std::vector<Block> blocks;
  for (std::size_t k = 0; k < matrices.size(); ++k) {
    const auto matrix = static_cast<index_t>(k);
    const MatrixView& w = matrices[k].entries;
    if (w.cols > kBlockEntries) {
      const index_t step = kBlockEntries / unit * unit;
      for (index_t row = 0; row < w.rows; ++row) {
        for (index_t col = 0; col < w.cols; col += step) {
          blocks.push_back({matrix, row, 1, col, std::min(step, w.cols - col)});
        }
      }
    } else {
      const index_t step = std::max<index_t>(kBlockEntries / w.cols, 1);
      for (index_t row = 0; row < w.rows; row += step) {
        blocks.push_back({matrix, row, std::min(step, w.rows - row), 0, w.cols});
      }
    }
  }
  return blocks;
}

void gather(const MatrixView& w, const Block& tile, std::byte* out) {
  dispatch(w.dtype, [&]<DType dtype>() { gather_tile(w, tile, reinterpret_cast<typename Entry<dtype>::Bits*>(out)); });
}

NonFinite describe_nonfinite(Team& team, std::span<const ScoredMatrix> matrices, index_t matrix) {
  const auto one = matrices.subspan(static_cast<std::size_t>(matrix), 1);
  const MatrixView& w = one[0].entries;
  const std::vector<Block> blocks = cut_into_blocks(one, 1);
  std::vector<NonFinite> found(blocks.size());
  team.parallel_for(static_cast<index_t>(blocks.size()), [&](index_t b, int) {
    auto& mine = found[static_cast<std::size_t>(b)];
    for_each_run(w, blocks[static_cast<std::size_t>(b)], 1, [&](const void* entries, index_t count, index_t flat) {
      dispatch(w.dtype, [&]<DType dtype>() { find_nonfinite<dtype>(entries, count, flat, mine); });
    });
  });
  NonFinite all{matrix, 0, 0};
  for (const NonFinite& part : found) {
    if (part.count > 0 && all.count == 0) all.first = part.first;  // blocks are in row-major order
    all.count += part.count;
  }
  if (all.count == 0) throw MatrixChanged();  // one was seen, and is gone
  return all;
}

}  // namespace mpfast::cpu
