#include "cpu/masks/projection.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "core/dtype.hpp"
#include "cpu/machine/dispatch.hpp"
#include "cpu/masks/entry_blocks.hpp"
#include "cpu/masks/projection_kernels.hpp"
#include "cpu/masks/swap_search.hpp"
#include "masks/projection.hpp"

namespace mpfast::cpu {

namespace {

// How many entries a tile has: its weights in double, and what is made of them, stay in L2.
constexpr index_t kTileRows = 16;
constexpr index_t kTileEntriesWide = index_t{1} << 13;

std::size_t position(index_t i) { return static_cast<std::size_t>(i); }

// The factor that brings the largest magnitude near 1.
double normalizer(const double* values, index_t count, index_t stride) {
  double largest = 0;
  for (index_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(values[i * stride]));
  return masks::unit_factor(largest);
}

// Each block with the largest entry of its diagonal near 1: a common factor changes no choice.
std::vector<double> normalized(const double* moments, index_t groups, int m) {
  const index_t size = static_cast<index_t>(m) * m;
  std::vector<double> result(position(groups * size));
  for (index_t g = 0; g < groups; ++g) {
    const double factor = normalizer(moments + g * size, m, m + 1);
    for (index_t i = 0; i < size; ++i) result[position(g * size + i)] = moments[g * size + i] * factor;
  }
  return result;
}

// Mean cost of dropping d slots of a group, without the prior.
double mean_cost(const double* u, const double* moment, int m, int d) {
  double trace = 0;
  double all = 0;
  for (int i = 0; i < m; ++i) {
    double row = 0;
    for (int j = 0; j < m; ++j) row += moment[i * m + j] * u[j];
    trace += u[i] * (moment[i * m + i] * u[i]);
    all += u[i] * row;
  }
  return masks::mean_cost(all, trace, m, d);
}

class Projector {
 public:
  explicit Projector(const ProjectionProblem& problem)
      : problem_(problem),
        w_(problem.matrix.entries),
        moments_(normalized(problem.moments, w_.cols / problem.m, problem.m)) {
    const index_t fitting = kTileEntriesWide / kTileRows / problem.m;
    groups_ = std::min(std::max<index_t>(fitting, 1), w_.cols / problem.m);
    row_tiles_ = (w_.rows + kTileRows - 1) / kTileRows;
    column_tiles_ = (w_.cols / problem.m + groups_ - 1) / groups_;
  }

  index_t tiles() const { return row_tiles_ * column_tiles_; }

  // Returns whether every weight is finite.
  bool project(index_t number) const {
    Tile tile;
    tile.row = number / column_tiles_ * kTileRows;
    tile.group = number % column_tiles_ * groups_;
    tile.rows = static_cast<int>(std::min(kTileRows, w_.rows - tile.row));
    tile.groups = std::min(groups_, w_.cols / problem_.m - tile.group);
    const index_t cols = tile.groups * problem_.m;
    tile.u.resize(position(tile.rows * cols));
    tile.prior.assign(tile.u.size(), 0.0);
    tile.keep.resize(tile.u.size());
    if (!load(tile)) return false;
    normalize(tile);
    if (problem_.m <= masks::kLargestTable) {
      const ProjectionTile groups{tile.u.data(), moment(tile.group), tile.prior.data(), tile.rows,
                                  tile.groups,   problem_.m,         problem_.n,        tile.keep.data()};
      for_active_isa([&]<class Isa>() { cpu::project<Isa>(groups); });
    } else {
      swap(tile);
    }
    for (int r = 0; r < tile.rows; ++r) {
      std::copy_n(tile.keep.data() + r * cols, cols,
                  problem_.matrix.keep + (tile.row + r) * w_.cols + tile.group * problem_.m);
    }
    return true;
  }

 private:
  struct Tile {
    index_t row = 0;
    index_t group = 0;
    int rows = 0;
    index_t groups = 0;
    std::vector<double> u;
    std::vector<double> prior;
    std::vector<std::uint8_t> keep;
  };

  const double* moment(index_t group) const {
    return moments_.data() + group * problem_.m * static_cast<index_t>(problem_.m);
  }

  bool load(Tile& tile) const {
    const index_t cols = tile.groups * problem_.m;
    bool finite = true;
    dispatch(w_.dtype, [&]<DType dtype>() {
      using Bits = typename Entry<dtype>::Bits;
      for (int r = 0; r < tile.rows; ++r) {
        const auto* row = reinterpret_cast<const Bits*>(address(w_, tile.row + r, tile.group * problem_.m));
        double* out = tile.u.data() + r * cols;
        for (index_t j = 0; j < cols; ++j) {
          const Bits bits = row[j * w_.col_stride];
          finite &= (bits & Entry<dtype>::kExponent) != Entry<dtype>::kExponent;
          out[j] = Entry<dtype>::widen(bits);
        }
      }
    });
    return finite;
  }

  // The weights of every group with the largest near 1, and the prior on the same scale.
  void normalize(Tile& tile) const {
    const int m = problem_.m;
    for (int r = 0; r < tile.rows; ++r) {
      for (index_t g = 0; g < tile.groups; ++g) {
        const index_t at = (r * tile.groups + g) * m;
        double* u = tile.u.data() + at;
        const double factor = normalizer(u, m, 1);
        for (int j = 0; j < m; ++j) u[j] *= factor;
        if (problem_.source == nullptr || problem_.prior == 0) continue;
        const std::uint8_t* source = problem_.source + (tile.row + r) * w_.cols + (tile.group + g) * m;
        const double unit = mean_cost(u, moment(tile.group + g), m, m - problem_.n);
        for (int j = 0; j < m; ++j) tile.prior[position(at + j)] = source[j] != 0 ? 2 * problem_.prior * unit : 0.0;
      }
    }
  }

  void swap(Tile& tile) const {
    const int m = problem_.m;
    std::vector<double> a(position(static_cast<index_t>(m) * m));
    for (int r = 0; r < tile.rows; ++r) {
      for (index_t g = 0; g < tile.groups; ++g) {
        const index_t at = (r * tile.groups + g) * m;
        const double* u = tile.u.data() + at;
        const double* block = moment(tile.group + g);
        for (int i = 0; i < m; ++i) {
          for (int j = 0; j < m; ++j) a[position(i * m + j)] = u[i] * block[i * m + j] * u[j];
          a[position(i * m + i)] += tile.prior[position(at + i)];
        }
        const std::uint64_t dropped = problem_.n == m ? 0 : cheapest_set(a.data(), m, m - problem_.n);
        for (int j = 0; j < m; ++j) tile.keep[position(at + j)] = (dropped >> j & 1U) != 0 ? 0 : 1;
      }
    }
  }

  const ProjectionProblem& problem_;
  const MatrixView& w_;
  std::vector<double> moments_;
  index_t groups_ = 1;  // of a tile
  index_t row_tiles_ = 0;
  index_t column_tiles_ = 0;
};

}  // namespace

std::optional<NonFinite> project_groups(Team& team, const ProjectionProblem& problem) {
  if (problem.m < 1 || problem.m > kLargestSwapGroup || problem.n < 1 || problem.n > problem.m) {
    throw std::invalid_argument("need 1 <= n <= m <= 64");
  }
  if (problem.matrix.entries.cols % problem.m != 0) throw std::invalid_argument("m must divide the number of columns");
  const Projector projector(problem);
  std::atomic<bool> finite{true};
  team.parallel_for(projector.tiles(), [&](index_t tile, int) {
    if (!projector.project(tile)) finite = false;
  });
  if (!finite) return describe_nonfinite(team, std::span(&problem.matrix, 1), 0);
  return std::nullopt;
}

}  // namespace mpfast::cpu
