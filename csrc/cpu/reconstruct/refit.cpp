#include "cpu/reconstruct/refit.hpp"

#include <algorithm>
#include <vector>

#include "core/buffer.hpp"
#include "linalg/lapack.hpp"

namespace mpfast::cpu {

namespace {

// Tiles of the product with H: wide enough that packing takes a tenth of the time.
constexpr index_t kProductRows = 512;
constexpr index_t kProductColumns = 1024;
// Tiles of rows that are under way at most, one for each thread: every one takes the memory of three copies of its
// rows.
constexpr index_t kMostTiles = 4;
// Rows that a task takes between two products.
constexpr index_t kTaskRows = 32;

std::size_t position(index_t i) { return static_cast<std::size_t>(i); }

double dot(const float* a, const float* b, index_t count) {
  constexpr index_t kLanes = 8;
  double sums[kLanes] = {};
  index_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (index_t lane = 0; lane < kLanes; ++lane) sums[lane] += static_cast<double>(a[i + lane]) * b[i + lane];
  }
  for (; i < count; ++i) sums[0] += static_cast<double>(a[i]) * b[i];
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

// Some rows of the problem on their way.
class Chunk {
 public:
  Chunk(Team& team, const RefitProblem& problem, index_t most_rows)
      : team_(team),
        problem_(problem),
        residual_(most_rows, problem.cols, "the residuals of a refit"),
        direction_(most_rows, problem.cols, "the directions of a refit"),
        image_(most_rows, problem.cols, "the products of a refit"),
        small_(most_rows, problem.width * problem.width, "the preconditioners of a refit"),
        energy_(position(most_rows)),
        left_(position(most_rows)) {}

  void run(index_t first, index_t rows) {
    first_ = first;
    rows_ = rows;
    begin();
    const auto is_on_its_way = [](double energy) { return energy > 0; };
    for (int step = 0; step < problem_.steps; ++step) {
      if (std::none_of(energy_.begin(), energy_.begin() + rows, is_on_its_way)) return;
      multiply(team_, rows_, problem_.cols, problem_.cols, direction_.get(), problem_.symmetric, image_.get());
      for_rows([&](index_t row, index_t count) { advance(row, count, step + 1 == problem_.steps); });
    }
  }

 private:
  template <class Task>
  void for_rows(const Task& task) {
    team_.parallel_for(ceil_div(rows_, kTaskRows), [&](index_t number, int) {
      const index_t row = number * kTaskRows;
      task(row, std::min(kTaskRows, rows_ - row));
    });
  }

  const std::uint8_t* keep(index_t row) const { return problem_.keep + (first_ + row) * problem_.cols; }
  float* weights(index_t row) const { return problem_.weights + (first_ + row) * problem_.cols; }
  float* at(Buffer<float>& buffer, index_t row) const { return buffer.get() + row * problem_.cols; }

  // The residual (W - V) H on the mask, and the first direction.
  void begin() {
    for_rows([&](index_t row, index_t count) {
      for (index_t r = row; r < row + count; ++r) {
        const float* const target = problem_.target + (first_ + r) * problem_.cols;
        for (index_t j = 0; j < problem_.cols; ++j) {
          at(direction_, r)[j] = (target[j] - weights(r)[j]) * problem_.roots[j];
        }
        if (problem_.width > 0) prepare(r);
      }
    });
    multiply(team_, rows_, problem_.cols, problem_.cols, direction_.get(), problem_.symmetric, residual_.get());
    for_rows([&](index_t row, index_t count) {
      for (index_t r = row; r < row + count; ++r) {
        left_[position(r)] = dot(at(direction_, r), at(residual_, r), problem_.cols);
        for (index_t j = 0; j < problem_.cols; ++j) at(residual_, r)[j] *= static_cast<float>(keep(r)[j] != 0);
      }
      precondition(row, count);
      for (index_t r = row; r < row + count; ++r) {
        std::copy_n(at(image_, r), problem_.cols, at(direction_, r));
        energy_[position(r)] = dot(at(residual_, r), at(image_, r), problem_.cols);
      }
    });
  }

  // The Cholesky factor of base I + B_K^T B_K of a row.
  void prepare(index_t r) {
    const index_t width = problem_.width;
    std::vector<float> kept;
    kept.reserve(position(problem_.cols * width));
    for (index_t j = 0; j < problem_.cols; ++j) {
      if (keep(r)[j] == 0) continue;
      kept.insert(kept.end(), problem_.basis + j * width, problem_.basis + (j + 1) * width);
    }
    float* const small = small_.get() + r * width * width;
    std::fill_n(small, width * width, 0.0F);
    for (index_t i = 0; i < width; ++i) small[i * width + i] = problem_.base;
    const index_t count = static_cast<index_t>(kept.size()) / width;
    if (count > 0) linalg::syrk_lower(width, count, 1.0F, kept.data(), width, 1.0F, small, width);
    linalg::cholesky_lower(width, small, width);
  }

  // image = preconditioner^-1 residual.
  void precondition(index_t row, index_t count) {
    const index_t width = problem_.width;
    std::vector<float> small(position(count * width));
    if (width > 0) {
      linalg::gemm(false, false, width, count, problem_.cols, 1.0F, problem_.basis, width, at(residual_, row),
                   problem_.cols, 0.0F, small.data(), width);
      for (index_t r = 0; r < count; ++r) {
        linalg::solve_cholesky(width, small_.get() + (row + r) * width * width, width, small.data() + r * width);
      }
      linalg::gemm(true, false, problem_.cols, count, width, 1.0F, problem_.basis, width, small.data(), width, 0.0F,
                   at(image_, row), problem_.cols);
    }
    for (index_t r = row; r < row + count; ++r) {
      const float* const residual = at(residual_, r);
      float* const image = at(image_, r);
      for (index_t j = 0; j < problem_.cols; ++j) {
        const float leading = width > 0 && keep(r)[j] != 0 ? image[j] : 0.0F;
        image[j] = (residual[j] - leading) / problem_.base;
      }
    }
  }

  void advance(index_t row, index_t count, bool last) {
    for (index_t r = row; r < row + count; ++r) {
      float* const image = at(image_, r);
      for (index_t j = 0; j < problem_.cols; ++j) image[j] *= static_cast<float>(keep(r)[j] != 0);
      const double curvature = dot(at(direction_, r), image, problem_.cols);
      double& energy = energy_[position(r)];
      double& left = left_[position(r)];
      // What the step takes away of the error.
      if (!(energy > 0 && curvature > 0 && energy * (energy / curvature) <= left)) {
        energy = 0;
        continue;
      }
      const double length = energy / curvature;
      left -= energy * length;
      const auto step = static_cast<float>(length);
      for (index_t j = 0; j < problem_.cols; ++j) {
        weights(r)[j] += step * at(direction_, r)[j] / problem_.roots[j];
        at(residual_, r)[j] -= step * image[j];
      }
    }
    if (last) return;
    precondition(row, count);
    for (index_t r = row; r < row + count; ++r) {
      const double before = energy_[position(r)];
      if (before == 0) continue;  // the row has ended
      const double energy = dot(at(residual_, r), at(image_, r), problem_.cols);
      const auto share = static_cast<float>(energy / before);
      for (index_t j = 0; j < problem_.cols; ++j) {
        at(direction_, r)[j] = at(image_, r)[j] + share * at(direction_, r)[j];
      }
      energy_[position(r)] = energy;
    }
  }

  Team& team_;
  const RefitProblem& problem_;
  index_t first_ = 0;
  index_t rows_ = 0;
  Buffer<float> residual_;
  Buffer<float> direction_;
  Buffer<float> image_;
  Buffer<float> small_;
  std::vector<double> energy_;
  std::vector<double> left_;  // the error of each row, in the norm of H
};

}  // namespace

void refit(Team& team, const RefitProblem& problem) {
  const index_t rows = kProductRows * std::min(kMostTiles, index_t{team.size()});
  Chunk chunk(team, problem, std::min(rows, problem.rows));
  for (index_t first = 0; first < problem.rows; first += rows) chunk.run(first, std::min(rows, problem.rows - first));
}

void multiply(Team& team, index_t rows, index_t cols, index_t depth, const float* a, const float* b, float* product) {
  const index_t column_tiles = ceil_div(cols, kProductColumns);
  team.parallel_for(ceil_div(rows, kProductRows) * column_tiles, [&](index_t task, int) {
    const index_t row = task / column_tiles * kProductRows;
    const index_t column = task % column_tiles * kProductColumns;
    linalg::gemm(false, false, std::min(kProductColumns, cols - column), std::min(kProductRows, rows - row), depth,
                 1.0F, b + column, cols, a + row * depth, depth, 0.0F, product + row * cols + column, cols);
  });
}

double quadratic_error(Team& team, const MatrixView& target, const MatrixView& weights, const double* moment,
                       std::pair<double, double> unit) {
  constexpr index_t kRows = 128;
  constexpr index_t kColumns = 512;
  const index_t cols = target.cols;
  const index_t tiles = ceil_div(target.rows, kRows);
  std::vector<double> shares(position(tiles));
  team.parallel_for(tiles, [&](index_t tile, int) {
    const index_t first = tile * kRows;
    const index_t rows = std::min(kRows, target.rows - first);
    std::vector<double> difference(position(rows * cols));
    std::vector<double> product(position(rows * kColumns));
    const auto add = [&](const MatrixView& from, double sign) {
      dispatch(from.dtype, [&]<DType dtype>() {
        const auto* bits = static_cast<const typename Entry<dtype>::Bits*>(from.data);
        for (index_t r = 0; r < rows; ++r) {
          for (index_t j = 0; j < cols; ++j) {
            const auto entry = bits[(first + r) * from.row_stride + j * from.col_stride];
            difference[position(r * cols + j)] += sign * Entry<dtype>::widen(entry) / unit.first / unit.second;
          }
        }
      });
    };
    add(target, 1);
    if (weights.data != nullptr) add(weights, -1);
    // The lower triangle of C, by blocks of columns: what lies left of a block counts twice.
    double total = 0;
    for (index_t column = 0; column < cols; column += kColumns) {
      const index_t width = std::min(kColumns, cols - column);
      for (const bool diagonal : {false, true}) {
        const index_t from = diagonal ? column : 0;
        const index_t depth = diagonal ? width : column;
        if (depth == 0) continue;
        linalg::gemm(false, false, width, rows, depth, diagonal ? 1.0 : 2.0, moment + from * cols + column, cols,
                     difference.data() + from, cols, 0.0, product.data(), width);
        for (index_t r = 0; r < rows; ++r) {
          double sum = 0;
          for (index_t j = 0; j < width; ++j) {
            sum += product[position(r * width + j)] * difference[position(r * cols + column + j)];
          }
          total += sum;
        }
      }
    }
    shares[position(tile)] = total;
  });
  double total = 0;
  for (const double share : shares) total += share;
  return total;
}

}  // namespace mpfast::cpu
