#include <stdexcept>
#include <vector>

#include "core/buffer.hpp"
#include "cpu/eigen/exact.hpp"
#include "cpu/eigen/symmetric_eigen.hpp"
#include "python/bindings.hpp"
#include "python/blas_team.hpp"

namespace mpfast::python {

namespace {

py::array_t<double> to_array(const std::vector<double>& values) {
  return py::array_t<double>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple exact_values(const Matrix& matrix, int threads) {
  std::vector<double> values(static_cast<std::size_t>(std::min(matrix.view.rows, matrix.view.cols)));
  cpu::ExactStats stats;
  {
    const InCore core;
    with_blas_team(core, threads, cpu::exact_work_bytes(matrix.view),
                   [&](cpu::Team& team) { cpu::singular_values(team, matrix.view, values.data(), &stats); });
  }
  const char* method = stats.method == cpu::ExactMethod::gram ? "gram" : "bidiagonal";
  return py::make_tuple(to_array(values), stats.frobenius_norm, stats.nonfinite_count, stats.first_nonfinite_row,
                        stats.first_nonfinite_col, method);
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
    with_blas_team(core, threads, 0,
                   [&](cpu::Team& team) { cpu::symmetric_eigenvalues(team, n, copy.get(), ld, values.data()); });
  }
  return to_array(values);
}

// Both triangles, as NumPy wants them.
py::tuple gram_matrix(const Matrix& matrix, int scale_exponent, int threads) {
  // Beyond, 2^-scale_exponent is no number.
  constexpr int kLargestExponent = 1022;
  if (scale_exponent < -kLargestExponent || scale_exponent > kLargestExponent) {
    throw std::invalid_argument("scale_exponent must be between -1022 and 1022");
  }
  const index_t p = std::min(matrix.view.rows, matrix.view.cols);
  py::array_t<double> out({static_cast<py::ssize_t>(p), static_cast<py::ssize_t>(p)});
  double* g = out.mutable_data();
  cpu::ExactStats stats;
  {
    const InCore core;
    with_blas_team(core, threads, 0,
                   [&](cpu::Team& team) { stats = cpu::gram_matrix(team, matrix.view, scale_exponent, g, p); });
    for (index_t j = 0; j < p; ++j) {
      for (index_t i = 0; i < j; ++i) g[j * p + i] = g[i * p + j];
    }
  }
  return py::make_tuple(out, stats.nonfinite_count, stats.first_nonfinite_row, stats.first_nonfinite_col);
}

}  // namespace

void register_exact(py::module_& m) {
  m.def("exact_values", &exact_values, py::arg("matrix"), py::arg("threads"),
        "All singular values of the matrix, descending, with its Frobenius norm, the number of non-finite entries, the "
        "first one's row and column (-1 when there is none) and the method used, 'gram' or 'bidiagonal'. With "
        "non-finite entries the values mean nothing.");
  m.def(
      "gram_matrix", &gram_matrix, py::arg("matrix"), py::arg("scale_exponent"), py::arg("threads"),
      "fp64 Gram matrix of the short side of 2^-scale_exponent W, with the number of non-finite entries and the first "
      "one's row and column.");
  m.def("symmetric_eigenvalues", &symmetric_eigenvalues, py::arg("a"), py::arg("threads"),
        "Eigenvalues of a finite symmetric matrix, ascending; only its upper triangle is read.");
}

}  // namespace mpfast::python
