#include "cuda/reconstruct/columns.hpp"

#include <algorithm>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <vector>

#include "cuda/masks/masks.hpp"
#include "cuda/products/dense_product.hpp"
#include "cuda/reconstruct/column_kernels.hpp"
#include "linalg/group_costs.hpp"

namespace mpfast::cuda {

namespace {

using reconstruct::ColumnChoice;
using reconstruct::ColumnRange;
using reconstruct::ColumnsProblem;

// The blocks U_GG of the groups, brought to the host: row i of all of them is one copy.
std::vector<float> diagonal_blocks(Stream stream, const ColumnsProblem& problem) {
  const index_t m = problem.m;
  const auto bytes = [](index_t entries) { return static_cast<std::size_t>(entries) * sizeof(float); };
  std::vector<float> blocks(static_cast<std::size_t>(problem.cols * m));
  for (index_t i = 0; i < m; ++i) {
    copy_rows(stream, blocks.data() + i * m, bytes(m * m), problem.factor + i * problem.cols,
              bytes(m * (problem.cols + 1)), bytes(m), static_cast<std::size_t>(problem.cols / m));
  }
  synchronize(stream);
  return blocks;
}

class Columns {
 public:
  Columns(Stream stream, const ColumnsProblem& problem, const Poll& poll)
      : stream_(stream), problem_(problem), poll_(poll), errors_(stream, problem.rows * problem.cols) {
    if (problem.choice == ColumnChoice::groups) {
      const std::vector<double> costs = linalg::group_costs(diagonal_blocks(stream, problem), problem.m);
      costs_ = DeviceBuffer<double>(stream, static_cast<index_t>(costs.size()));
      copy(stream, costs_.get(), costs.data(), costs.size() * sizeof(double));
      synchronize(stream);  // before `costs` ends
    }
    if (problem.choice == ColumnChoice::smallest) {
      const index_t widest = std::min(reconstruct::kLeafColumns, problem.cols);
      scores_ = DeviceBuffer<float>(stream, problem.rows * widest);
      chosen_ = DeviceBuffer<std::uint8_t>(stream, problem.rows * widest);
    }
  }

  void set_grid(const ColumnRange& whole) { set_grids(stream_, problem_, whole); }

  void settle(const ColumnRange& leaf) {
    if (poll_) poll_();
    if (problem_.choice == ColumnChoice::smallest) choose_smallest(leaf);
    settle_leaf(stream_, {problem_, leaf, errors_.get(), chosen_.get(), costs_.get()});
  }

  void make_up(const ColumnRange& from, const ColumnRange& to) {
    const index_t stride = problem_.cols;
    dense_product(stream_, {errors_.get() + from.first, problem_.rows, from.count(), stride},
                  {problem_.factor + from.first * stride + to.first, from.count(), to.count(), stride}, Into::subtract,
                  {problem_.weights + to.first, problem_.rows, to.count(), stride});
  }

 private:
  // Every leaf prunes its share of the entries.
  void choose_smallest(const ColumnRange& leaf) {
    score_leaf(stream_, problem_, leaf, scores_.get());
    const MatrixView scores{scores_.get(), DType::float32, problem_.rows, leaf.count(), leaf.count(), 1};
    const ScoredMatrix matrix{scores, 1.0, chosen_.get()};
    const index_t entries =
        reconstruct::pruned_before(problem_, leaf.last) - reconstruct::pruned_before(problem_, leaf.first);
    if (prune_smallest(stream_, std::span(&matrix, 1), entries)) {
      throw std::runtime_error("the weights left the range of single precision");
    }
  }

  Stream stream_;
  const ColumnsProblem& problem_;
  const Poll& poll_;
  DeviceBuffer<float> errors_;
  DeviceBuffer<double> costs_;
  DeviceBuffer<float> scores_;
  DeviceBuffer<std::uint8_t> chosen_;
};

}  // namespace

void obs_columns(Stream stream, const ColumnsProblem& problem, const Poll& poll) {
  Columns columns(stream, problem, poll);
  reconstruct::treat_columns(problem, columns);
  synchronize(stream);
}

}  // namespace mpfast::cuda
