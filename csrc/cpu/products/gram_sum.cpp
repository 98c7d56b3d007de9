#include "cpu/products/gram_sum.hpp"

#include <algorithm>

#include "core/buffer.hpp"
#include "core/dtype.hpp"
#include "cpu/machine/dispatch.hpp"
#include "cpu/products/gram_sum_kernels.hpp"
#include "cpu/products/product_kernels.hpp"

namespace mpfast::cpu {

namespace {

constexpr index_t kTilesAtOnce = 4;
constexpr index_t kRowsAtOnce = kTilesAtOnce * kTileDepth;
constexpr index_t kBlockColumns = 192;

const char* address(const MatrixView& x, index_t row, index_t col) {
  const index_t entries = row * x.row_stride + col * x.col_stride;
  return static_cast<const char*>(x.data) + entries * static_cast<index_t>(size_of(x.dtype));
}

template <class Real>
class Update {
 public:
  Update(const MatrixView& x, double* sums)
      : x_(x),
        sums_(sums),
        kernels_(for_active_isa([]<class Isa>() { return gram_kernels<Isa, Real>(); })),
        pack_(for_active_isa([&]<class Isa>() { return product_kernels<Isa, Real>(x.dtype)->pack; })),
        panels_(ceil_div(x.cols, kernels_.panel)),
        panels_per_block_(std::max<index_t>(kBlockColumns / kernels_.panel, 1)),
        blocks_(ceil_div(panels_, panels_per_block_)),
        packed_(std::min(x.rows, kRowsAtOnce), panels_ * kernels_.panel, "a block of rows") {}

  void run(Team& team) {
    for (first_ = 0; first_ < x_.rows; first_ += kRowsAtOnce) {
      const index_t tiles = ceil_div(std::min(kRowsAtOnce, x_.rows - first_), kTileDepth);
      team.parallel_for(tiles * panels_, [&](index_t task, int) { pack(task / panels_, task % panels_); });
      // Block (i, j) of the upper triangle is task j (j + 1) / 2 + i.
      team.parallel_for(blocks_ * (blocks_ + 1) / 2, [&](index_t task, int) {
        index_t column = 0;
        while ((column + 1) * (column + 2) / 2 <= task) ++column;
        add_block(task - column * (column + 1) / 2, column, tiles);
      });
    }
  }

 private:
  index_t depth(index_t tile) const { return std::min(kTileDepth, x_.rows - first_ - tile * kTileDepth); }

  // All tiles but the last of all have kTileDepth rows.
  Real* panel(index_t tile, index_t number) {
    return packed_.get() + (tile * kTileDepth * panels_ + number * depth(tile)) * kernels_.panel;
  }

  void pack(index_t tile, index_t number) {
    const index_t rows = depth(tile);
    const index_t left = number * kernels_.panel;
    const index_t cols = std::min(kernels_.panel, x_.cols - left);
    Real* target = panel(tile, number);
    if (cols < kernels_.panel) std::fill_n(target, rows * kernels_.panel, Real{});
    pack_({address(x_, first_ + tile * kTileDepth, left), x_.row_stride, x_.col_stride, rows, cols}, target,
          kernels_.panel);
  }

  void add_block(index_t row, index_t column, index_t tiles) {
    for (index_t tile = 0; tile < tiles; ++tile) {
      for (index_t j = column * panels_per_block_; j < std::min((column + 1) * panels_per_block_, panels_); ++j) {
        for (index_t i = row * panels_per_block_; i <= std::min((row + 1) * panels_per_block_ - 1, j); ++i) {
          add_panels(tile, i, j);
        }
      }
    }
  }

  void add_panels(index_t tile, index_t i, index_t j) {
    const index_t width = kernels_.panel;
    const index_t top = i * width;
    const index_t left = j * width;
    const GramTarget target{sums_ + top * x_.cols + left, x_.cols, std::min(width, x_.cols - top),
                            std::min(width, x_.cols - left), i == j};
    kernels_.add_product(panel(tile, i), panel(tile, j), depth(tile), target);
  }

  const MatrixView& x_;
  double* sums_;
  GramKernels<Real> kernels_;
  void (*pack_)(const PackSource&, Real*, index_t);
  index_t panels_;
  index_t panels_per_block_;
  index_t blocks_;
  Buffer<Real> packed_;
  index_t first_ = 0;  // of the rows at hand
};

}  // namespace

void add_gram(Team& team, const MatrixView& x, double* sums) {
  if (needs_double(x.dtype)) {
    Update<double>(x, sums).run(team);
  } else {
    Update<float>(x, sums).run(team);
  }
}

index_t gram_tasks(const MatrixView& x) {
  const index_t blocks = ceil_div(x.cols, kBlockColumns);
  return blocks * (blocks + 1) / 2;
}

}  // namespace mpfast::cpu
