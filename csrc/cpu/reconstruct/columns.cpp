#include "cpu/reconstruct/columns.hpp"

#include <algorithm>
#include <cmath>
#include <span>
#include <stdexcept>
#include <vector>

#include "core/buffer.hpp"
#include "cpu/machine/dispatch.hpp"
#include "cpu/masks/masks.hpp"
#include "cpu/masks/projection_kernels.hpp"
#include "cpu/masks/swap_search.hpp"
#include "cpu/reconstruct/column_kernels.hpp"
#include "linalg/group_costs.hpp"
#include "linalg/lapack.hpp"
#include "masks/projection.hpp"
#include "reconstruct/rounding.hpp"

namespace mpfast::cpu {

namespace {

using reconstruct::ColumnChoice;
using reconstruct::ColumnRange;
using reconstruct::ColumnsProblem;

// Tiles of a product: wide enough that packing its operands takes a tenth of the time, and a few milliseconds long.
constexpr index_t kProductRows = 512;
constexpr index_t kProductColumns = 1024;
constexpr int kRows = kColumnTileRows;

std::size_t position(index_t i) { return static_cast<std::size_t>(i); }

// The blocks U_GG of the groups of n:m.
std::vector<float> diagonal_blocks(const ColumnsProblem& problem) {
  const int m = problem.m;
  std::vector<float> blocks;
  blocks.reserve(position(problem.cols * m));
  for (index_t row = 0; row < problem.cols; ++row) {
    const float* const from = problem.factor + row * problem.cols + row / m * m;
    blocks.insert(blocks.end(), from, from + m);
  }
  return blocks;
}

// A tile of one leaf, transposed: columns are contiguous.
class LeafTile {
 public:
  LeafTile(const ColumnsProblem& problem, const ColumnRange& leaf, index_t row)
      : problem_(problem),
        leaf_(leaf),
        row_(row),
        rows_(static_cast<int>(std::min<index_t>(kRows, problem.rows - row))),
        columns_(static_cast<int>(leaf.count())),
        weights_(position(columns_ * kRows), 0.0F),
        errors_(weights_.size()),
        keep_(weights_.size(), 1) {
    for (int r = 0; r < rows_; ++r) {
      const float* const from = problem.weights + (row + r) * problem.cols + leaf.first;
      for (int j = 0; j < columns_; ++j) weights_[position(j * kRows + r)] = from[j];
    }
    tile_ = {weights_.data(),
             errors_.data(),
             keep_.data(),
             problem.factor + leaf.first * problem.cols + leaf.first,
             problem.cols,
             columns_,
             problem.bits,
             scale_,
             zero_};
  }

  // `keep`: row r of the tile at r * stride.
  void read_mask(const std::uint8_t* keep, index_t stride) {
    for (int r = 0; r < rows_; ++r) {
      for (int j = 0; j < columns_; ++j) keep_[position(j * kRows + r)] = keep[r * stride + j];
    }
  }

  // `costs`: of the groups, where they choose what stays; null otherwise.
  void sweep(const double* costs) {
    const int step = costs != nullptr ? problem_.m : columns_;
    for (int first = 0; first < columns_;) {
      int last = first + step;
      if (costs != nullptr) choose(first, costs + (leaf_.first + first) * problem_.m);
      if (problem_.bits != 0) last = std::min(last, take_grid(first));
      for_active_isa([&]<class Isa>() { sweep_columns<Isa>(tile_, first, last); });
      first = last;
    }
  }

  void write(float* errors, bool mask) const {
    for (int r = 0; r < rows_; ++r) {
      const index_t at = (row_ + r) * problem_.cols + leaf_.first;
      for (int j = 0; j < columns_; ++j) problem_.weights[at + j] = weights_[position(j * kRows + r)];
      for (int j = 0; j < columns_; ++j) errors[at + j] = errors_[position(j * kRows + r)];
      if (!mask) continue;
      for (int j = 0; j < columns_; ++j) problem_.keep[at + j] = keep_[position(j * kRows + r)];
    }
  }

 private:
  // Which of the m columns from `first` on stay.
  void choose(int first, const double* cost) {
    const int m = problem_.m;
    double u[kRows * masks::kLargestTable];
    double prior[kRows * masks::kLargestTable] = {};
    std::uint8_t kept[kRows * kLargestSwapGroup];
    if (m <= masks::kLargestTable) {
      for (int r = 0; r < kRows; ++r) read_group(first, r, u + r * m);
      const ProjectionTile groups{u, cost, prior, kRows, 1, m, problem_.n, kept};
      for_active_isa([&]<class Isa>() { project<Isa>(groups); });
    } else {
      for (int r = 0; r < rows_; ++r) exchange(first, r, cost, kept + r * m);
    }
    for (int r = 0; r < rows_; ++r) {
      for (int j = 0; j < m; ++j) keep_[position((first + j) * kRows + r)] = kept[r * m + j];
    }
  }

  // A group of a row with its largest weight near 1.
  void read_group(int first, int r, double* u) const {
    double largest = 0;
    for (int j = 0; j < problem_.m; ++j) {
      u[j] = weights_[position((first + j) * kRows + r)];
      largest = std::max(largest, std::abs(u[j]));
    }
    const double factor = masks::unit_factor(largest);
    for (int j = 0; j < problem_.m; ++j) u[j] *= factor;
  }

  void exchange(int first, int r, const double* cost, std::uint8_t* kept) const {
    const int m = problem_.m;
    double u[kLargestSwapGroup];
    double a[kLargestSwapGroup * kLargestSwapGroup];
    read_group(first, r, u);
    for (int i = 0; i < m; ++i) {
      for (int j = 0; j < m; ++j) a[i * m + j] = u[i] * cost[i * m + j] * u[j];
    }
    const std::uint64_t dropped = problem_.n == m ? 0 : cheapest_set(a, m, m - problem_.n);
    for (int j = 0; j < m; ++j) kept[j] = (dropped >> j & 1U) != 0 ? 0 : 1;
  }

  // The grid of the group that `first` lies in, made if it is the group's first column in this leaf. Returns the end of
  // the group.
  int take_grid(int first) {
    const ColumnRange whole = reconstruct::grid_columns(problem_, leaf_.first + first);
    const index_t group = whole.first / problem_.group;
    const index_t groups = ceil_div(problem_.cols, problem_.group);
    const bool inside = whole.last <= leaf_.last && whole.first == leaf_.first + first;
    if (inside) {
      const float top = static_cast<float>((1 << problem_.bits) - 1);
      for (int r = 0; r < rows_; ++r) {
        float low = 0;
        float high = 0;
        for (int j = first; j < whole.last - leaf_.first; ++j) {
          low = std::min(low, weights_[position(j * kRows + r)]);
          high = std::max(high, weights_[position(j * kRows + r)]);
        }
        const reconstruct::Grid grid = reconstruct::grid_over(low, high, top, problem_.symmetric);
        problem_.scale[(row_ + r) * groups + group] = grid.scale;
        problem_.zero[(row_ + r) * groups + group] = grid.zero;
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const index_t at = (row_ + std::min(r, rows_ - 1)) * groups + group;
      scale_[r] = problem_.scale[at];
      zero_[r] = problem_.zero[at];
    }
    return static_cast<int>(std::min(whole.last, leaf_.last) - leaf_.first);
  }

  const ColumnsProblem& problem_;
  const ColumnRange leaf_;
  index_t row_;
  int rows_;
  int columns_;
  std::vector<float> weights_;
  std::vector<float> errors_;
  std::vector<std::uint8_t> keep_;
  float scale_[kRows] = {};
  float zero_[kRows] = {};
  ColumnTile tile_;
};

class Columns {
 public:
  Columns(Team& team, const ColumnsProblem& problem)
      : team_(team),
        problem_(problem),
        errors_(problem.rows, problem.cols, "the errors of the columns of W"),
        row_tiles_(ceil_div(problem.rows, kRows)) {
    if (problem.choice == ColumnChoice::groups) {
      costs_ = linalg::group_costs(diagonal_blocks(problem), problem.m);
    }
    if (problem.choice == ColumnChoice::smallest) {
      const index_t widest = std::min(reconstruct::kLeafColumns, problem.cols);
      scores_ = Buffer<float>(problem.rows, widest, "the scores of some columns of W");
      chosen_ = Buffer<std::uint8_t>(problem.rows, widest, "the mask of some columns of W");
    }
  }

  // The grid of a group that is wider than a leaf.
  void set_grid(const ColumnRange& whole) {
    const index_t groups = ceil_div(problem_.cols, problem_.group);
    const index_t group = whole.first / problem_.group;
    const float top = static_cast<float>((1 << problem_.bits) - 1);
    team_.parallel_for(row_tiles_, [&](index_t tile, int) {
      for (index_t row = tile * kRows; row < std::min((tile + 1) * kRows, problem_.rows); ++row) {
        const float* const weights = problem_.weights + row * problem_.cols;
        const auto [low, high] = std::minmax_element(weights + whole.first, weights + whole.last);
        const reconstruct::Grid grid = reconstruct::grid_over(*low, *high, top, problem_.symmetric);
        problem_.scale[row * groups + group] = grid.scale;
        problem_.zero[row * groups + group] = grid.zero;
      }
    });
  }

  void settle(const ColumnRange& leaf) {
    if (problem_.choice == ColumnChoice::smallest) choose_smallest(leaf);
    team_.parallel_for(row_tiles_, [&](index_t number, int) {
      const index_t row = number * kRows;
      LeafTile tile(problem_, leaf, row);
      if (problem_.choice == ColumnChoice::smallest) {
        tile.read_mask(chosen_.get() + row * leaf.count(), leaf.count());
      } else if (problem_.choice == ColumnChoice::given) {
        tile.read_mask(problem_.keep + row * problem_.cols + leaf.first, problem_.cols);
      }
      tile.sweep(costs_.empty() ? nullptr : costs_.data());
      tile.write(errors_.get(), problem_.choice != ColumnChoice::given);
    });
  }

  // Columns `to` make up for what columns `from` have lost: W_to -= E_from U_from,to.
  void make_up(const ColumnRange& from, const ColumnRange& to) {
    const index_t row_tiles = ceil_div(problem_.rows, kProductRows);
    const index_t column_tiles = ceil_div(to.count(), kProductColumns);
    const index_t stride = problem_.cols;
    team_.parallel_for(row_tiles * column_tiles, [&](index_t task, int) {
      const index_t row = task / column_tiles * kProductRows;
      const index_t column = to.first + task % column_tiles * kProductColumns;
      // As BLAS sees row-major matrices, this is W^T -= U^T E^T.
      linalg::gemm(false, false, std::min(kProductColumns, to.last - column),
                   std::min(kProductRows, problem_.rows - row), from.count(), -1.0F,
                   problem_.factor + from.first * stride + column, stride, errors_.get() + row * stride + from.first,
                   stride, 1.0F, problem_.weights + row * stride + column, stride);
    });
  }

 private:
  // Every leaf prunes its share of the entries.
  void choose_smallest(const ColumnRange& leaf) {
    const index_t width = leaf.count();
    team_.parallel_for(row_tiles_, [&](index_t tile, int) {
      for (index_t row = tile * kRows; row < std::min((tile + 1) * kRows, problem_.rows); ++row) {
        for (index_t j = 0; j < width; ++j) {
          const index_t column = leaf.first + j;
          scores_.get()[row * width + j] =
              problem_.weights[row * problem_.cols + column] / problem_.factor[column * problem_.cols + column];
        }
      }
    });
    const MatrixView scores{scores_.get(), DType::float32, problem_.rows, width, width, 1};
    const ScoredMatrix matrix{scores, 1.0, chosen_.get()};
    const index_t entries =
        reconstruct::pruned_before(problem_, leaf.last) - reconstruct::pruned_before(problem_, leaf.first);
    if (prune_smallest(team_, std::span(&matrix, 1), entries)) {
      throw std::runtime_error("the weights left the range of single precision");
    }
  }

  Team& team_;
  const ColumnsProblem& problem_;
  Buffer<float> errors_;
  index_t row_tiles_;
  std::vector<double> costs_;
  Buffer<float> scores_;
  Buffer<std::uint8_t> chosen_;
};

}  // namespace

void obs_columns(Team& team, const ColumnsProblem& problem) {
  Columns columns(team, problem);
  reconstruct::treat_columns(problem, columns);
}

}  // namespace mpfast::cpu
