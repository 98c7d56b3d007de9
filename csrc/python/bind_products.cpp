#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "cpu/machine/team.hpp"
#include "cpu/products/dense_product.hpp"
#include "cpu/products/gram_sum.hpp"
#include "cpu/products/nonfinite.hpp"
#include "cpu/products/products.hpp"
#include "python/arguments.hpp"
#include "python/bindings.hpp"
#include "python/blas_team.hpp"
#include "python/factors.hpp"

namespace mpfast::python {

namespace {

template <class Real>
using Block = py::array_t<Real, py::array::c_style>;

cpu::Side parse_side(const std::string& side) {
  if (side == "right") return cpu::Side::right;
  if (side == "left") return cpu::Side::left;
  throw std::invalid_argument("side must be 'right' or 'left', not '" + side + "'");
}

template <class Real>
void check_block(const char* function, const Block<Real>& x, index_t length) {
  if (x.ndim() != 2 || x.shape(1) != length) {
    throw std::invalid_argument(std::string(function) + "(): x must have shape (width, " + std::to_string(length) +
                                "), one vector per row");
  }
  if (x.shape(0) < 1) throw std::invalid_argument(std::string(function) + "(): x holds no vectors");
}

template <class Real>
py::tuple gram_product(const Matrix& matrix, const Block<Real>& x, const std::string& side, int threads,
                       int scale_exponent, const FactorArrays& factors, const EnergyArrays& energies, bool norm) {
  const cpu::Side parsed = parse_side(side);
  const index_t length = parsed == cpu::Side::right ? matrix.source.cols : matrix.source.rows;
  check_block("gram_product", x, length);
  if (x.shape(0) > cpu::kMaxBlockWidth) {
    throw std::invalid_argument("gram_product(): x holds " + std::to_string(x.shape(0)) + " vectors, at most " +
                                std::to_string(cpu::kMaxBlockWidth) + " are possible");
  }
  const OwnFactors own(factors, matrix.source);
  check_energies(energies, matrix.source);
  Energies found;
  Block<Real> z({x.shape(0), length});
  const int width = static_cast<int>(x.shape(0));
  const Real* input = x.data();
  Real* output = z.mutable_data();
  linalg::OperatorStats stats;
  {
    const InCore core;
    cpu::Team team(cpu::threads_for(threads, 4.0 * width * entries_of(matrix.source)), core.poll());
    cpu::gram_product(team, matrix.source, own.view(), parsed, scale_exponent, width, input, output,
                      norm ? &stats : nullptr, energies ? &found : nullptr);
    if (!norm) {
      stats.trace = std::numeric_limits<double>::quiet_NaN();
      // An entry of W that is not finite leaves no entry of the product finite.
      if (!std::isfinite(output[0])) cpu::find_nonfinite(matrix.source, stats);
    }
  }
  if (energies) store_energies(found, *energies);
  return py::make_tuple(z, stats.trace, stats.nonfinite_count, stats.first_nonfinite_row, stats.first_nonfinite_col);
}

template <class Real>
Block<Real> multiply(const Matrix& matrix, const Block<Real>& x, bool transpose, int threads, int scale_exponent) {
  const cpu::Source source = transpose ? matrix.source.transposed() : matrix.source;
  check_block("multiply", x, source.cols);
  Block<Real> y({static_cast<index_t>(x.shape(0)), source.rows});
  const Real* input = x.data();
  Real* output = y.mutable_data();
  {
    const InCore core;
    cpu::Team team(cpu::threads_for(threads, 2.0 * static_cast<double>(x.shape(0)) * entries_of(source)), core.poll());
    cpu::multiply(team, source, scale_exponent, x.shape(0), input, output);
  }
  return y;
}

void add_gram(const Matrix& matrix, Block<double> sums, int threads) {
  const MatrixView x = matrix.view();
  check_not_empty(x);
  if (sums.ndim() != 2 || sums.shape(0) != x.cols || sums.shape(1) != x.cols) {
    throw std::invalid_argument("add_gram(): sums must be square, with a row for each column of the matrix");
  }
  double* target = sums.mutable_data();  // throws when read-only
  const InCore core;
  const index_t useful = std::min<index_t>(cpu::resolve_threads(threads), cpu::gram_tasks(x));
  cpu::Team team(static_cast<int>(useful), core.poll());
  cpu::add_gram(team, x, target);
}

Block<double> dense_product(const Block<double>& a, const Block<double>& b, int threads) {
  if (a.ndim() != 2 || b.ndim() != 2 || a.shape(1) != b.shape(0)) {
    throw std::invalid_argument("dense_product(): a and b must be of shapes (m, k) and (k, n)");
  }
  const index_t m = a.shape(0);
  const index_t n = b.shape(1);
  const index_t k = a.shape(1);
  Block<double> c({m, n});
  const double* left = a.data();
  const double* right = b.data();
  double* output = c.mutable_data();
  {
    const InCore core;
    const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
    with_blas_team(core, cpu::threads_for(threads, flops), 0,
                   [&](cpu::Team& team) { cpu::dense_product(team, m, n, k, left, right, output); });
  }
  return c;
}

py::tuple energies(const Matrix& matrix, int scale_exponent, int threads, const FactorArrays& factors) {
  const OwnFactors own(factors, matrix.source);
  linalg::OperatorStats stats;
  Energies found;
  {
    const InCore core;
    cpu::Team team(cpu::threads_for(threads, 4 * entries_of(matrix.source)), core.poll());
    found = cpu::energies(team, matrix.source, own.view(), scale_exponent, &stats);
  }
  return energies_tuple(&found) +
         py::make_tuple(stats.nonfinite_count, stats.first_nonfinite_row, stats.first_nonfinite_col);
}

std::uint64_t read_pass(const Matrix& matrix, int threads) {
  const MatrixView view = matrix.view();
  const InCore core;
  cpu::Team team(cpu::resolve_threads(threads), core.poll());
  return cpu::read_pass(team, view);
}

template <class Real>
void register_precision(py::module_& m) {
  m.def("gram_product", &gram_product<Real>, py::arg("matrix"), py::arg("x").noconvert(), py::arg("side"),
        py::arg("threads"), py::arg("scale_exponent") = 0, py::arg("factors").noconvert() = py::none(),
        py::arg("energies").noconvert() = py::none(), py::arg("norm").noconvert() = true,
        "W^T (W X) (side 'right') or W (W^T X) ('left') in one pass, with the statistics of that pass (no norm where "
        "not `norm`); it fills the arrays `energies`.");
  m.def("multiply", &multiply<Real>, py::arg("matrix"), py::arg("x").noconvert(), py::arg("transpose").noconvert(),
        py::arg("threads"), py::arg("scale_exponent") = 0, "W X, or W^T X.");
}

}  // namespace

void register_products(py::module_& m) {
  register_precision<float>(m);
  register_precision<double>(m);
  m.def("energies", &energies, py::arg("matrix"), py::arg("scale_exponent"), py::arg("threads"),
        py::arg("factors").noconvert() = py::none(),
        "Sums of the squares of every row and of every column of 2^-scale_exponent W, with the number of non-finite "
        "entries and the first one's row and column.");
  m.def("add_gram", &add_gram, py::arg("matrix"), py::arg("sums").noconvert(), py::arg("threads"),
        "Add X^T X to the upper triangle of `sums`.");
  m.def("dense_product", &dense_product, py::arg("a"), py::arg("b"), py::arg("threads"),
        "A B of two matrices of float64 in host memory.");
  m.def("read_pass", &read_pass, py::arg("matrix"), py::arg("threads"),
        "Read every entry once and return the sum of the bit patterns: the yardstick for the products.");
}

}  // namespace mpfast::python
