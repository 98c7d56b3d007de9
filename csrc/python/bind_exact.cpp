#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/buffer.hpp"
#include "cpu/eigen/dense_vectors.hpp"
#include "cpu/eigen/exact.hpp"
#include "cpu/eigen/semidefinite.hpp"
#include "cpu/eigen/symmetric_eigen.hpp"
#include "python/arguments.hpp"
#include "python/bindings.hpp"
#include "python/blas_team.hpp"
#include "python/factors.hpp"

namespace mpfast::python {

namespace {

py::array_t<double> to_array(const std::vector<double>& values) {
  return py::array_t<double>(static_cast<py::ssize_t>(values.size()), values.data());
}

using Doubles = py::array_t<double, py::array::c_style>;

// Both triangles, as NumPy wants them, of a p x p matrix that has its lower one, column-major.
void fill_upper(double* g, index_t p) {
  for (index_t j = 0; j < p; ++j) {
    for (index_t i = 0; i < j; ++i) g[j * p + i] = g[i * p + j];
  }
}

void check_exponent(int scale_exponent) {
  // Beyond, 2^-scale_exponent is no number.
  constexpr int kLargestExponent = 1022;
  if (scale_exponent < -kLargestExponent || scale_exponent > kLargestExponent) {
    throw std::invalid_argument("scale_exponent must be between -1022 and 1022");
  }
}

// Flops of an eigenvalue problem, about.
double cubed(index_t n) { return 4.0 * std::pow(static_cast<double>(n), 3); }

// Of a decomposition of `count` rows, about.
double flops_of_rows(index_t count, index_t length) {
  return 4.0 * static_cast<double>(count) * static_cast<double>(count) * static_cast<double>(length);
}

// About those of all values of a matrix.
double flops_of_values(const cpu::Source& view) {
  const index_t p = std::min(view.rows, view.cols);
  return entries_of(view) * static_cast<double>(p) + cubed(p);
}

py::tuple values_tuple(const std::vector<double>& values, const cpu::ExactStats& stats) {
  const char* method = stats.method == cpu::ExactMethod::gram ? "gram" : "bidiagonal";
  return py::make_tuple(to_array(values), stats.frobenius_norm, stats.nonfinite_count, stats.first_nonfinite_row,
                        stats.first_nonfinite_col, method);
}

py::tuple exact_values(const Matrix& matrix, int threads, const FactorArrays& factors, std::optional<Doubles> gram,
                       int scale_exponent) {
  const OwnFactors own(factors, matrix.source);
  check_exponent(scale_exponent);
  const index_t p = std::min(matrix.source.rows, matrix.source.cols);
  if (gram && (gram->ndim() != 2 || gram->shape(0) != p || gram->shape(1) != p)) {
    throw std::invalid_argument("gram must be a (p, p) array");
  }
  double* const g = gram ? gram->mutable_data() : nullptr;
  std::vector<double> values(static_cast<std::size_t>(p));
  cpu::ExactStats stats;
  {
    const InCore core;
    const int useful = cpu::threads_for(threads, flops_of_values(matrix.source));
    with_blas_team(core, useful, cpu::exact_work_bytes(matrix.source), [&](cpu::Team& team) {
      cpu::singular_values(team, matrix.source, own.view(), values.data(), &stats, g, scale_exponent);
    });
    if (g != nullptr && stats.nonfinite_count == 0) fill_upper(g, p);
  }
  return values_tuple(values, stats);
}

// Each matrix is the task of one thread.
py::list exact_values_of_each(const MatrixList<Matrix>& matrices, int threads) {
  struct Found {
    std::vector<double> values;
    cpu::ExactStats stats;
  };
  std::vector<Found> found(matrices.size());
  double flops = 0;
  index_t most_bytes = 0;
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    const cpu::Source& view = matrices[i].get().source;
    check_not_empty(view);
    found[i].values.resize(static_cast<std::size_t>(std::min(view.rows, view.cols)));
    flops += flops_of_values(view);
    most_bytes = std::max(most_bytes, cpu::exact_work_bytes(view));
  }
  {
    const InCore core;
    const int useful = static_cast<int>(
        std::clamp<index_t>(std::ssize(found), 1, static_cast<index_t>(cpu::threads_for(threads, flops))));
    with_blas_team(core, useful, useful * most_bytes, [&](cpu::Team& team) {
      team.parallel_for(std::ssize(found), [&](index_t task, int) {
        const auto i = static_cast<std::size_t>(task);
        cpu::Team alone(1);
        cpu::singular_values(alone, matrices[i].get().source, {}, found[i].values.data(), &found[i].stats);
      });
    });
  }
  py::list out;
  for (const Found& each : found) out.append(values_tuple(each.values, each.stats));
  return out;
}

py::array_t<double> symmetric_eigenvalues(const py::array_t<double, py::array::c_style | py::array::forcecast>& a,
                                          int threads) {
  if (a.ndim() != 2 || a.shape(0) != a.shape(1)) throw std::invalid_argument("a must be a square 2-D array");
  const index_t n = a.shape(0);
  std::vector<double> values(static_cast<std::size_t>(n));
  const double* from = a.data();
  {
    const InCore core;
    const index_t ld = padded_leading_dimension(n);
    Buffer<double> copy(ld, n, "a copy of the matrix");
    for (index_t j = 0; j < n; ++j) std::copy(from + j * n, from + (j + 1) * n, copy.get() + j * ld);
    with_blas_team(core, cpu::threads_for(threads, cubed(n)), 0,
                   [&](cpu::Team& team) { cpu::symmetric_eigenvalues(team, n, copy.get(), ld, values.data()); });
  }
  return to_array(values);
}

// LAPACK may wait for ever for numbers that are none.
void check_finite(const Doubles& array, const char* name) {
  if (!std::all_of(array.data(), array.data() + array.size(), [](double entry) { return std::isfinite(entry); })) {
    throw std::invalid_argument(std::string(name) + " must be finite");
  }
}

Doubles matrix_of(index_t rows, index_t cols) {
  return Doubles({static_cast<py::ssize_t>(rows), static_cast<py::ssize_t>(cols)});
}

cpu::Rows rows_of(Doubles& array) { return {array.mutable_data(), array.shape(0), array.shape(1)}; }

Buffer<double> copy_of(const double* entries, index_t rows, index_t cols) {
  Buffer<double> copy(rows, cols, "a copy of the matrix");
  std::copy_n(entries, rows * cols, copy.get());
  return copy;
}

py::tuple symmetric_eigenvectors(const Doubles& a, int threads) {
  if (a.ndim() != 2 || a.shape(0) != a.shape(1)) throw std::invalid_argument("a must be a square 2-D array");
  check_finite(a, "a");
  const index_t n = a.shape(0);
  Doubles vectors = matrix_of(n, n);
  std::vector<double> values;
  const double* from = a.data();
  double* to = vectors.mutable_data();
  {
    const InCore core;
    with_blas_team(core, cpu::threads_for(threads, cubed(n)), cpu::eigenvector_bytes(n),
                   [&](cpu::Team& team) { values = cpu::symmetric_eigenvectors(team, n, from, to); });
  }
  return py::make_tuple(to_array(values), vectors);
}

py::tuple largest_eigenvectors(const Doubles& a, index_t count, int threads) {
  if (a.ndim() != 2 || a.shape(0) != a.shape(1)) throw std::invalid_argument("a must be a square 2-D array");
  check_finite(a, "a");
  const index_t n = a.shape(0);
  if (count < 0 || count > n) throw std::invalid_argument("count must be between 0 and the order of a");
  Doubles vectors = matrix_of(count, n);
  std::vector<double> values;
  const double* from = a.data();
  double* to = vectors.mutable_data();
  {
    const InCore core;
    with_blas_team(core, cpu::threads_for(threads, cubed(n)), cpu::eigenvector_bytes(n),
                   [&](cpu::Team& team) { values = cpu::largest_eigenvectors(team, n, count, from, to); });
  }
  return py::make_tuple(to_array(values), vectors);
}

py::tuple singular_decomposition(const Doubles& basis, const Doubles& image, int threads) {
  if (basis.ndim() != 2 || image.ndim() != 2 || basis.shape(0) != image.shape(0)) {
    throw std::invalid_argument("basis and image must be 2-D arrays with as many rows");
  }
  if (basis.size() == 0 || image.size() == 0) throw std::invalid_argument("basis and image must hold vectors");
  if (image.shape(0) > image.shape(1)) throw std::invalid_argument("image must not have more rows than columns");
  check_finite(basis, "basis");
  check_finite(image, "image");
  const index_t count = image.shape(0);
  const index_t length = image.shape(1);
  Doubles right = matrix_of(count, basis.shape(1));
  Doubles left = matrix_of(count, length);
  // The basis is only read, behind the same kind of view.
  const cpu::Rows v{const_cast<double*>(basis.data()), count, basis.shape(1)};
  const cpu::Rows out_v = rows_of(right);
  const cpu::Rows out_u = rows_of(left);
  const double* from = image.data();
  std::vector<double> values;
  {
    const InCore core;
    const index_t bytes = cpu::decomposition_bytes(count) + count * length * static_cast<index_t>(sizeof(double));
    with_blas_team(core, cpu::threads_for(threads, flops_of_rows(count, length)), bytes, [&](cpu::Team& team) {
      Buffer<double> copy = copy_of(from, count, length);
      values = cpu::decompose_to_singular(team, v, {copy.get(), count, length}, out_v, out_u);
    });
  }
  return py::make_tuple(to_array(values), left, right);
}

py::tuple orthonormal_rows(const Doubles& x, int threads) {
  if (x.ndim() != 2 || x.size() == 0) throw std::invalid_argument("x must be a 2-D array that holds vectors");
  check_finite(x, "x");
  const index_t count = x.shape(0);
  const index_t length = x.shape(1);
  const index_t rank = std::min(count, length);
  Doubles q = matrix_of(rank, length);
  Doubles r = matrix_of(rank, count);
  const cpu::Rows out_q = rows_of(q);
  const cpu::Rows out_r = rows_of(r);
  const double* from = x.data();
  {
    const InCore core;
    const index_t bytes = 2 * count * length * static_cast<index_t>(sizeof(double));
    with_blas_team(core, cpu::threads_for(threads, flops_of_rows(count, length)), bytes, [&](cpu::Team& team) {
      Buffer<double> copy = copy_of(from, count, length);
      cpu::orthonormal_rows(team, {copy.get(), count, length}, out_q, out_r);
    });
  }
  return py::make_tuple(q, r);
}

py::tuple semidefinite_root(const Doubles& a, int threads) {
  if (a.ndim() != 2 || a.shape(0) != a.shape(1) || a.size() == 0) {
    throw std::invalid_argument("a must be a square 2-D array that is not empty");
  }
  check_finite(a, "a");
  const index_t n = a.shape(0);
  const double* from = a.data();
  cpu::SemidefiniteRoot root;
  {
    const InCore core;
    with_blas_team(core, cpu::threads_for(threads, cubed(n)), n * n * static_cast<index_t>(sizeof(double)),
                   [&](cpu::Team& team) { root = cpu::semidefinite_root(team, n, from); });
  }
  Doubles factor = matrix_of(n, root.rank);
  for (index_t i = 0; i < n; ++i) {
    double* const row = factor.mutable_data() + root.order[static_cast<std::size_t>(i)] * root.rank;
    for (index_t j = 0; j < root.rank; ++j) row[j] = j <= i ? root.lower.get()[i + j * root.ld] : 0.0;
  }
  return py::make_tuple(factor, root.rest);
}

py::tuple gram_matrix(const Matrix& matrix, int scale_exponent, int threads, const FactorArrays& factors) {
  const OwnFactors own(factors, matrix.source);
  check_exponent(scale_exponent);
  const index_t p = std::min(matrix.source.rows, matrix.source.cols);
  py::array_t<double> out({static_cast<py::ssize_t>(p), static_cast<py::ssize_t>(p)});
  double* g = out.mutable_data();
  cpu::ExactStats stats;
  {
    const InCore core;
    const double flops = entries_of(matrix.source) * static_cast<double>(p);
    with_blas_team(core, cpu::threads_for(threads, flops), 0, [&](cpu::Team& team) {
      stats = cpu::gram_matrix(team, matrix.source, own.view(), scale_exponent, g, p);
    });
    fill_upper(g, p);
  }
  return py::make_tuple(out, stats.nonfinite_count, stats.first_nonfinite_row, stats.first_nonfinite_col);
}

}  // namespace

void register_exact(py::module_& m) {
  m.def("exact_values", &exact_values, py::arg("matrix"), py::arg("threads"),
        py::arg("factors").noconvert() = py::none(), py::arg("gram").noconvert() = py::none(),
        py::arg("scale_exponent") = 0,
        "All singular values of the matrix, descending, with its Frobenius norm, the number of non-finite entries, the "
        "first one's row and column (-1 when there is none) and the method used, 'gram' or 'bidiagonal'. With "
        "non-finite entries the values mean nothing. gram (p, p), where given, gets what gram_matrix returns.");
  m.def("exact_values_of_each", &exact_values_of_each, py::arg("matrices"), py::arg("threads"),
        "What exact_values says of each, to the bit, each on one thread.");
  m.def(
      "gram_matrix", &gram_matrix, py::arg("matrix"), py::arg("scale_exponent"), py::arg("threads"),
      py::arg("factors").noconvert() = py::none(),
      "fp64 Gram matrix of the short side of 2^-scale_exponent W, with the number of non-finite entries and the first "
      "one's row and column.");
  m.def("symmetric_eigenvalues", &symmetric_eigenvalues, py::arg("a"), py::arg("threads"),
        "Eigenvalues of a finite symmetric matrix, ascending; only its upper triangle is read.");
  m.def(
      "symmetric_eigenvectors", &symmetric_eigenvectors, py::arg("a"), py::arg("threads"),
      "Eigenvalues of a finite symmetric matrix, ascending, and its eigenvectors, one per row; only its upper triangle "
      "is read.");
  m.def("largest_eigenvectors", &largest_eigenvectors, py::arg("a"), py::arg("count"), py::arg("threads"),
        "The largest count of these eigenvalues, ascending, and their eigenvectors, one per row.");
  m.def(
      "singular_decomposition", &singular_decomposition, py::arg("basis").noconvert(), py::arg("image").noconvert(),
      py::arg("threads"),
      "As singular_rotation, of finite float64 vectors, by an orthogonal decomposition of the image, which has no more "
      "rows than columns: precise to a rounding of s_1, with orthonormal vectors even of zero.");
  m.def("semidefinite_root", &semidefinite_root, py::arg("a").noconvert(), py::arg("threads"),
        "F (n, rank), and the largest |entry| of A - F F^T, for a finite symmetric A, positive semidefinite and with a "
        "diagonal near 1, or zero; only its lower triangle is read.");
  m.def("orthonormal_rows", &orthonormal_rows, py::arg("x").noconvert(), py::arg("threads"),
        "q, whose rows are an orthonormal basis of what those of the finite x (k, n) span, and r (upper trapezoidal), "
        "with x^T = q^T r; q has min(k, n) rows.");
}

}  // namespace mpfast::python
