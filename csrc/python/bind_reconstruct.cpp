#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "cpu/masks/swap_search.hpp"
#include "cpu/reconstruct/columns.hpp"
#include "cpu/reconstruct/factor.hpp"
#include "cpu/reconstruct/refit.hpp"
#include "python/arguments.hpp"
#include "python/bindings.hpp"
#include "python/blas_team.hpp"
#include "reconstruct/rounding.hpp"

namespace mpfast::python {

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

constexpr index_t kBytesOfFloat = sizeof(float);

template <class T>
void check_shape(const Array<T>& array, index_t rows, index_t cols, const char* name) {
  if (array.ndim() == 2 && array.shape(0) == rows && array.shape(1) == cols) return;
  throw std::invalid_argument(std::string(name) + " has not the shape that it must have");
}

template <class T>
void check_length(const Array<T>& array, index_t length, const char* name) {
  if (array.ndim() == 1 && array.shape(0) == length) return;
  throw std::invalid_argument(std::string(name) + " has not the length that it must have");
}

template <class T>
void check_positive(const Array<T>& array, const char* name) {
  for (index_t i = 0; i < array.size(); ++i) {
    if (!(array.data()[i] > 0 && std::isfinite(array.data()[i]))) {
      throw std::invalid_argument(std::string(name) + " must be positive and finite");
    }
  }
}

void check_square(const MatrixView& moment) {
  check_not_empty(moment);
  if (moment.rows != moment.cols) throw std::invalid_argument("a second moment must be square");
}

template <class T>
std::pair<index_t, index_t> checked_shape(const Array<T>& weights) {
  if (weights.ndim() != 2 || weights.size() == 0) throw std::invalid_argument("expected a 2-D array that is not empty");
  return {weights.shape(0), weights.shape(1)};
}

std::uint8_t* bytes(Array<bool>& mask) { return reinterpret_cast<std::uint8_t*>(mask.mutable_data()); }

py::tuple examine_moment(const Matrix& moment, int threads) {
  check_square(moment.view());
  Array<double> diagonal(moment.view().rows);
  double* const to = diagonal.mutable_data();
  cpu::MomentFacts facts;
  {
    const InCore core;
    cpu::Team team(cpu::resolve_threads(threads), core.poll());
    facts = cpu::examine_moment(team, moment.view(), to);
  }
  return py::make_tuple(diagonal, facts.asymmetry, facts.nonfinite_count, facts.first_nonfinite_row,
                        facts.first_nonfinite_col);
}

py::tuple inverse_factor(const Matrix& moment, double unit, const Array<double>& diagonal, int threads) {
  check_square(moment.view());
  const index_t n = moment.view().rows;
  check_length(diagonal, n, "diagonal");
  check_scale(unit);
  Array<float> factor({n, n});
  float* const to = factor.mutable_data();
  const double* const from = diagonal.data();
  index_t pivot = 0;
  {
    const InCore core;
    constexpr index_t kBlockRow = 512;  // of the matrix, which is copied besides
    with_blas_team(core, threads, (n * n + kBlockRow * n) * static_cast<index_t>(sizeof(double)),
                   [&](cpu::Team& team) { pivot = cpu::inverse_factor(team, moment.view(), unit, from, to); });
  }
  return py::make_tuple(factor, pivot);
}

py::tuple positive_inverse(const Array<double>& h, int threads) {
  const index_t n = checked_shape(h).first;
  check_shape(h, n, n, "h");
  Array<double> inverse({n, n});
  const double* const from = h.data();
  double* const to = inverse.mutable_data();
  index_t pivot = -1;
  {
    const InCore core;
    with_blas_team(core, threads, n * n * static_cast<index_t>(sizeof(double)),
                   [&](cpu::Team& team) { pivot = cpu::positive_inverse(team, n, from, to); });
  }
  return py::make_tuple(inverse, pivot);
}

Array<double> removal_costs(const Array<double>& b, const Array<double>& g, int threads) {
  if (b.ndim() != 3 || b.size() == 0 || b.shape(1) != b.shape(2)) {
    throw std::invalid_argument("expected a stack of square matrices that is not empty");
  }
  if (g.ndim() != 3 || !std::equal(b.shape(), b.shape() + 3, g.shape())) {
    throw std::invalid_argument("g has not the shape of b");
  }
  const index_t count = b.shape(0);
  const index_t size = b.shape(1);
  Array<double> costs(count);
  const double* const from = b.data();
  const double* const other = g.data();
  double* const to = costs.mutable_data();
  const InCore core;
  with_blas_team(core, threads, 0, [&](cpu::Team& team) { cpu::removal_costs(team, count, size, from, other, to); });
  return costs;
}

Array<float> correlations(const Matrix& moment, const Array<double>& roots, int threads) {
  check_square(moment.view());
  const index_t n = moment.view().rows;
  check_length(roots, n, "roots");
  check_positive(roots, "roots");
  Array<float> result({n, n});
  float* const to = result.mutable_data();
  const double* const from = roots.data();
  const InCore core;
  cpu::Team team(cpu::resolve_threads(threads), core.poll());
  cpu::correlations(team, moment.view(), from, to);
  return result;
}

Array<float> leading_part(const Array<float>& symmetric, const Array<std::int8_t>& probes, int threads) {
  const auto [n, width] = checked_shape(probes);
  check_shape(symmetric, n, n, "symmetric");
  Array<float> basis({n, width});
  float* const to = basis.mutable_data();
  const InCore core;
  with_blas_team(core, threads, 2 * n * width * kBytesOfFloat, [&, n = n, width = width](cpu::Team& team) {
    cpu::leading_part(team, n, symmetric.data(), width, probes.data(), to);
  });
  return basis;
}

// bits, columns of a group, whether zero is in the middle, and where scales and zeros go.
using GridTarget = std::tuple<int, index_t, bool, Array<float>, Array<float>>;

void obs_columns(Array<float> weights, Array<bool> keep, const Array<float>& factor, std::optional<index_t> pruned,
                 std::optional<std::pair<int, int>> pattern, std::optional<GridTarget> grid, int threads) {
  const auto [rows, cols] = checked_shape(weights);
  check_shape(keep, rows, cols, "keep");
  check_shape(factor, cols, cols, "factor");
  for (index_t j = 0; j < cols; ++j) {
    const float entry = factor.data()[j * cols + j];
    if (!(entry > 0 && std::isfinite(entry))) throw std::invalid_argument("the diagonal of factor must be positive");
  }
  reconstruct::ColumnsProblem problem;
  problem.rows = rows;
  problem.cols = cols;
  problem.weights = weights.mutable_data();
  problem.keep = bytes(keep);
  problem.factor = factor.data();
  if (pruned && pattern) throw std::invalid_argument("pruned and pattern exclude each other");
  if (pruned) {
    if (*pruned < 0 || *pruned > rows * cols) {
      throw std::invalid_argument("pruned must lie between 0 and the number of entries");
    }
    problem.choice = reconstruct::ColumnChoice::smallest;
    problem.pruned = *pruned;
  }
  if (pattern) {
    const auto [n, m] = *pattern;
    if (m < 1 || m > cpu::kLargestSwapGroup || n < 1 || n > m || cols % m != 0) {
      throw std::invalid_argument("need 1 <= n <= m <= 64, and m must divide the number of columns");
    }
    problem.choice = reconstruct::ColumnChoice::groups;
    problem.n = n;
    problem.m = m;
  }
  if (grid) {
    auto& [bits, group, symmetric, scale, zero] = *grid;
    if (bits < 1 || bits > reconstruct::kMostBits || group < 1 || group > cols) {
      throw std::invalid_argument("bits must lie in [1, 8], and group between 1 and the number of columns");
    }
    if (pattern && group != cols && group % problem.m != 0) {
      throw std::invalid_argument("m must divide the columns of a grid");
    }
    check_shape(scale, rows, ceil_div(cols, group), "scale");
    check_shape(zero, rows, ceil_div(cols, group), "zero");
    if (symmetric && bits < 2) throw std::invalid_argument("a symmetric grid is of 2 bits or more");
    problem.bits = bits;
    problem.symmetric = symmetric;
    problem.group = group;
    problem.scale = scale.mutable_data();
    problem.zero = zero.mutable_data();
  }
  const InCore core;
  with_blas_team(core, threads, rows * cols * kBytesOfFloat, [&](cpu::Team& team) { cpu::obs_columns(team, problem); });
}

void refit(const Array<float>& target, Array<float> weights, const Array<bool>& keep, const Array<float>& symmetric,
           const Array<float>& roots, const Array<float>& basis, float base, int steps, int threads) {
  const auto [rows, cols] = checked_shape(weights);
  check_shape(target, rows, cols, "target");
  check_shape(keep, rows, cols, "keep");
  check_shape(symmetric, cols, cols, "symmetric");
  check_length(roots, cols, "roots");
  check_positive(roots, "roots");
  if (basis.ndim() != 2 || basis.shape(0) != cols) throw std::invalid_argument("basis has not a row for each column");
  if (!(base > 0 && std::isfinite(base))) throw std::invalid_argument("base must be positive and finite");
  // More would go on for hours, with nothing left to change.
  constexpr int kMostSteps = 10000;
  if (steps < 0 || steps > kMostSteps) throw std::invalid_argument("steps must lie between 0 and 10000");
  cpu::RefitProblem problem;
  problem.rows = rows;
  problem.cols = cols;
  problem.target = target.data();
  problem.weights = weights.mutable_data();
  problem.keep = reinterpret_cast<const std::uint8_t*>(keep.data());
  problem.symmetric = symmetric.data();
  problem.roots = roots.data();
  problem.basis = basis.data();
  problem.width = basis.shape(1);
  problem.base = base;
  problem.steps = steps;
  const InCore core;
  constexpr index_t kArrays = 3;
  with_blas_team(core, threads, kArrays * rows * cols * kBytesOfFloat,
                 [&](cpu::Team& team) { cpu::refit(team, problem); });
}

Array<float> product(const Array<float>& a, const Array<float>& b, int threads) {
  const auto [rows, depth] = checked_shape(a);
  const index_t cols = checked_shape(b).second;
  check_shape(b, depth, cols, "b");
  Array<float> result({rows, cols});
  float* const to = result.mutable_data();
  const InCore core;
  with_blas_team(core, threads, 0, [&, rows = rows, depth = depth](cpu::Team& team) {
    cpu::multiply(team, rows, cols, depth, a.data(), b.data(), to);
  });
  return result;
}

double quadratic_error(const Matrix& target, const std::optional<std::reference_wrapper<const Matrix>>& weights,
                       const Array<double>& moment, std::pair<double, double> unit, int threads) {
  check_not_empty(target.view());
  check_scale(unit.first);
  check_scale(unit.second);
  MatrixView other;
  if (weights) other = weights->get().view();
  if (weights && (other.rows != target.view().rows || other.cols != target.view().cols)) {
    throw std::invalid_argument("weights has not the shape of target");
  }
  check_shape(moment, target.view().cols, target.view().cols, "moment");
  const InCore core;
  double total = 0;
  with_blas_team(core, threads, 0, [&](cpu::Team& team) {
    total = cpu::quadratic_error(team, target.view(), other, moment.data(), unit);
  });
  return total;
}

}  // namespace

void register_reconstruct(py::module_& m) {
  m.def(
      "examine_moment", &examine_moment, py::arg("moment"), py::arg("threads"),
      "Diagonal, by how much it is no second moment, number of non-finite entries and the first one's row and column.");
  m.def("inverse_factor", &inverse_factor, py::arg("moment"), py::arg("unit"), py::arg("diagonal").noconvert(),
        py::arg("threads"),
        "Upper triangular U with U^T U = H^-1, H being C / unit with another diagonal; and the input at which H is not "
        "positive definite, or -1.");
  m.def(
      "positive_inverse", &positive_inverse, py::arg("h").noconvert(), py::arg("threads"),
      "H^-1 of a positive definite float64 H, whose lower triangle is read; and the index at which it is not positive "
      "definite, or -1.");
  m.def("removal_costs", &removal_costs, py::arg("b").noconvert(), py::arg("g").noconvert(), py::arg("threads"),
        "tr B^-1 G of every pair of two stacks of symmetric float64 matrices; NaN where B is not positive definite.");
  m.def("correlations", &correlations, py::arg("moment"), py::arg("roots").noconvert(), py::arg("threads"),
        "C_ij roots_i roots_j, with ones on the diagonal.");
  m.def("leading_part", &leading_part, py::arg("symmetric").noconvert(), py::arg("probes").noconvert(),
        py::arg("threads"), "B with B B^T close to a symmetric matrix in its leading directions, as many as probes.");
  m.def("obs_columns", &obs_columns, py::arg("weights").noconvert(), py::arg("keep").noconvert(),
        py::arg("factor").noconvert(), py::arg("pruned"), py::arg("pattern"), py::arg("grid"), py::arg("threads"),
        "Optimal brain surgeon, column by column, in place: on the given mask, or on that of `pruned` entries or of a "
        "pattern (n, m), which is written; `grid`: bits, columns of a group, whether it is symmetric, scales and zeros "
        "to "
        "be written.");
  m.def("refit", &refit, py::arg("target").noconvert(), py::arg("weights").noconvert(), py::arg("keep").noconvert(),
        py::arg("symmetric").noconvert(), py::arg("roots").noconvert(), py::arg("basis").noconvert(), py::arg("base"),
        py::arg("steps"), py::arg("threads"), "Least squares on a mask, in place.");
  m.def("product", &product, py::arg("a").noconvert(), py::arg("b").noconvert(), py::arg("threads"),
        "Product of two float32 matrices.");
  m.def("quadratic_error", &quadratic_error, py::arg("target"), py::arg("weights"), py::arg("moment").noconvert(),
        py::arg("unit"), py::arg("threads"),
        "Sum of d^T C d over the rows of target - weights, over the square of a unit, given as two factors.");
}

}  // namespace mpfast::python
