#include <stdexcept>
#include <string>
#include <vector>

#include "core/scale.hpp"
#include "cuda/products/products.hpp"
#include "python/arguments.hpp"
#include "python/cuda/bindings.hpp"
#include "python/dtype_names.hpp"
#include "python/factors.hpp"

namespace mpfast::python {

namespace {

template <class Real>
using Block = py::array_t<Real, py::array::c_style>;

// The sample of the entries that scale_exponent looks at, brought to the host.
int scale_exponent_of(const DeviceMatrix& w, const FactorArrays& arrays) {
  check_not_empty(w.source);
  const OwnFactors own(arrays, w.source);
  const InCore core;
  const ScaleSample sample(w.source);
  const index_t rows = (w.source.rows + sample.row_step - 1) / sample.row_step;
  const index_t cols = (w.source.cols + sample.col_step - 1) / sample.col_step;
  const DType dtype = w.source.dtype_in_tiles();
  const auto bytes = rows * cols * static_cast<index_t>(size_of(dtype));
  const cuda::DeviceBuffer<char> there(w.stream, bytes);
  cuda::gather_sample(w.stream, w.source, sample.row_step, sample.col_step, rows, cols, there.get());
  const std::vector<char> here = cuda::to_host(w.stream, there.get(), bytes);
  const MatrixView entries{here.data(), dtype, rows, cols, cols, 1};
  if (!own.view().given()) return scale_exponent(entries);
  const auto sampled = [](const double* factors, index_t step, index_t count) {
    std::vector<double> some(static_cast<std::size_t>(count));
    for (index_t k = 0; k < count; ++k) some[static_cast<std::size_t>(k)] = factors[k * step];
    return some;
  };
  const std::vector<double> row_factors = sampled(own.view().rows, sample.row_step, rows);
  const std::vector<double> col_factors = sampled(own.view().cols, sample.col_step, cols);
  return scale_exponent(entries, {row_factors.data(), col_factors.data()});
}

// How a product would be cut on a device with these limits; needs no device. For the roofline account and for tests.
py::dict plan_of(const std::string& kind, const std::string& dtype, index_t rows, index_t cols, std::size_t real_bytes,
                 int width, std::size_t shared_bytes, int largest_cluster) {
  const cuda::Source b(MatrixView{nullptr, parse_dtype(dtype), rows, cols, cols, 1});
  check_not_empty(b);
  if (kind != "gram" && kind != "plain") throw std::invalid_argument("kind must be 'gram' or 'plain'");
  if (real_bytes != sizeof(float) && real_bytes != sizeof(double))
    throw std::invalid_argument("real_bytes must be 4 or 8");
  if (width < 1 || width > cuda::kMaxBlockWidth) throw std::invalid_argument("width must be between 1 and 32");
  if (largest_cluster < 1) throw std::invalid_argument("largest_cluster must be positive");
  const cuda::ProductPlan plan = cuda::plan_product(kind == "gram" ? cuda::ProductKind::gram : cuda::ProductKind::plain,
                                                    b, real_bytes, width, {shared_bytes, largest_cluster});
  py::dict out;
  out["possible"] = plan.possible;
  out["width"] = plan.width;
  out["threads"] = plan.threads;
  out["slice"] = plan.slice;
  out["slices"] = plan.slices;
  out["panel_rows"] = plan.panel_rows;
  out["chunk_panels"] = plan.chunk_panels;
  out["chunks"] = plan.chunks;
  out["shared_bytes"] = plan.shared_bytes;
  return out;
}

// Vectors in device memory, given by address. Without statistics nothing is waited for.
template <class Real>
linalg::OperatorStats gram_product_at(const DeviceMatrix& w, std::uintptr_t x, std::uintptr_t z, int width, bool right,
                                      int scale_exponent, bool with_stats) {
  check_not_empty(w.source);
  if (x == 0 || z == 0) throw std::invalid_argument("vectors have no address");
  const cuda::Operand operand = right ? cuda::Operand{w.source, false, scale_exponent, {}}
                                      : cuda::Operand{w.source.transposed(), true, scale_exponent, {}};
  linalg::OperatorStats stats;
  const InCore core;
  cuda::Workspace<Real> workspace(w.stream);
  cuda::gram_product(workspace, operand, width, reinterpret_cast<const Real*>(x), reinterpret_cast<Real*>(z),
                     cuda::Into::store, with_stats ? &stats : nullptr);
  return stats;
}

// Vectors in host memory, (width, cols) to (width, rows); `transpose`: (width, rows) to (width, cols).
template <class Real>
Block<Real> multiply(const DeviceMatrix& w, const Block<Real>& x, bool transpose, int scale_exponent) {
  check_not_empty(w.source);
  const cuda::Source b = transpose ? w.source.transposed() : w.source;
  if (x.ndim() != 2 || x.shape(1) != b.cols || x.shape(0) < 1) {
    throw std::invalid_argument("multiply(): x must have shape (width, " + std::to_string(b.cols) + ")");
  }
  const index_t width = x.shape(0);
  Block<Real> y({width, b.rows});
  const Real* const input = x.data();
  Real* const output = y.mutable_data();
  const InCore core;
  cuda::Workspace<Real> workspace(w.stream);
  const cuda::DeviceBuffer<Real> x_there(w.stream, width * b.cols);
  const cuda::DeviceBuffer<Real> y_there(w.stream, width * b.rows);
  cuda::copy(w.stream, x_there.get(), input, static_cast<std::size_t>(width * b.cols) * sizeof(Real));
  cuda::multiply(workspace, cuda::Operand{b, transpose, scale_exponent, {}}, width, x_there.get(), y_there.get(),
                 cuda::Into::store);
  cuda::copy(w.stream, output, y_there.get(), static_cast<std::size_t>(width * b.rows) * sizeof(Real));
  cuda::synchronize(w.stream);
  return y;
}

// As gram_product_at, with vectors in host memory.
template <class Real>
py::tuple gram_product(const DeviceMatrix& w, const Block<Real>& x, bool right, int scale_exponent) {
  const index_t dim = right ? w.source.cols : w.source.rows;
  if (x.ndim() != 2 || x.shape(1) != dim || x.shape(0) < 1 || x.shape(0) > cuda::kMaxBlockWidth) {
    throw std::invalid_argument("gram_product(): x must have shape (1 to 32, " + std::to_string(dim) + ")");
  }
  const index_t size = x.shape(0) * dim;
  const auto bytes = static_cast<std::size_t>(size) * sizeof(Real);
  Block<Real> z({x.shape(0), dim});
  const cuda::DeviceBuffer<Real> x_there(w.stream, size);
  const cuda::DeviceBuffer<Real> z_there(w.stream, size);
  cuda::copy(w.stream, x_there.get(), x.data(), bytes);
  const linalg::OperatorStats stats = gram_product_at<Real>(w, reinterpret_cast<std::uintptr_t>(x_there.get()),
                                                            reinterpret_cast<std::uintptr_t>(z_there.get()),
                                                            static_cast<int>(x.shape(0)), right, scale_exponent, true);
  cuda::copy(w.stream, z.mutable_data(), z_there.get(), bytes);
  cuda::synchronize(w.stream);
  return py::make_tuple(z, stats.trace, stats.nonfinite_count, stats.first_nonfinite_row, stats.first_nonfinite_col);
}

// A Gram product with a vector of zeros, for what its pass learns.
py::tuple energies(const DeviceMatrix& w, int scale_exponent, const FactorArrays& arrays) {
  check_not_empty(w.source);
  const OwnFactors own(arrays, w.source);
  linalg::OperatorStats stats;
  Energies found;
  {
    const InCore core;
    const cuda::DeviceFactors factors(w.stream, own.view(), w.source);
    const cuda::Operand operand = cuda::short_side(w.source, scale_exponent, factors.view());
    cuda::Workspace<double> workspace(w.stream);
    const cuda::DeviceBuffer<double> zeros(w.stream, operand.b.cols);
    const cuda::DeviceBuffer<double> nothing(w.stream, operand.b.cols);
    const std::vector<double> host(static_cast<std::size_t>(operand.b.cols));
    cuda::copy(w.stream, zeros.get(), host.data(), host.size() * sizeof(double));
    cuda::gram_product(workspace, operand, 1, zeros.get(), nothing.get(), cuda::Into::store, &stats, &found);
  }
  return energies_tuple(&found) +
         py::make_tuple(stats.nonfinite_count, stats.first_nonfinite_row, stats.first_nonfinite_col);
}

// Gram matrix of the short side, in double: a Gram product with the columns of the identity, 32 at a time.
py::tuple gram_matrix(const DeviceMatrix& w, int scale_exponent, const FactorArrays& arrays) {
  check_not_empty(w.source);
  const OwnFactors own(arrays, w.source);
  const cuda::DeviceFactors factors(w.stream, own.view(), w.source);
  const cuda::Operand operand = cuda::short_side(w.source, scale_exponent, factors.view());
  const index_t p = operand.b.cols;
  py::array_t<double> gram({p, p});
  double* const out = gram.mutable_data();
  linalg::OperatorStats stats;
  {
    const InCore core;
    cuda::Workspace<double> workspace(w.stream);
    const cuda::DeviceBuffer<double> columns(w.stream, p * p);
    const cuda::DeviceBuffer<double> unit(w.stream, p * cuda::kMaxBlockWidth);
    for (index_t c = 0; c < p; c += cuda::kMaxBlockWidth) {
      const auto width = static_cast<int>(std::min<index_t>(cuda::kMaxBlockWidth, p - c));
      cuda::fill_identity(w.stream, unit.get(), p, width, c);
      linalg::OperatorStats* const first_only = c == 0 ? &stats : nullptr;
      cuda::gram_product(workspace, operand, width, unit.get(), columns.get() + c * p, cuda::Into::store, first_only);
      if (stats.nonfinite_count > 0) break;
    }
    cuda::copy(w.stream, out, columns.get(), static_cast<std::size_t>(p * p) * sizeof(double));
    cuda::synchronize(w.stream);
  }
  return py::make_tuple(gram, stats.nonfinite_count, stats.first_nonfinite_row, stats.first_nonfinite_col);
}

}  // namespace

void register_cuda_products(py::module_& m) {
  m.def("scale_exponent", &scale_exponent_of, py::arg("matrix"), py::arg("factors").noconvert() = py::none(),
        "As that of _core.");
  m.def("gram_product", &gram_product<float>, py::arg("matrix"), py::arg("x").noconvert(), py::arg("right").noconvert(),
        py::arg("scale_exponent") = 0);
  m.def("gram_product", &gram_product<double>, py::arg("matrix"), py::arg("x").noconvert(),
        py::arg("right").noconvert(), py::arg("scale_exponent") = 0, "As that of _core, with vectors in host memory.");
  m.def(
      "gram_product_at",
      [](const DeviceMatrix& w, std::uintptr_t x, std::uintptr_t z, int width, const std::string& dtype, bool right,
         int scale_exponent, bool with_stats) {
        if (dtype != "float64" && dtype != "float32") throw std::invalid_argument("dtype must be float64 or float32");
        const linalg::OperatorStats stats =
            dtype == "float64" ? gram_product_at<double>(w, x, z, width, right, scale_exponent, with_stats)
                               : gram_product_at<float>(w, x, z, width, right, scale_exponent, with_stats);
        return py::make_tuple(stats.trace, stats.nonfinite_count, stats.first_nonfinite_row, stats.first_nonfinite_col);
      },
      py::arg("matrix"), py::arg("x"), py::arg("z"), py::arg("width"), py::arg("dtype"), py::arg("right").noconvert(),
      py::arg("scale_exponent") = 0, py::arg("with_stats").noconvert() = true,
      "As gram_product; x and z are addresses of (width, dim) float32 or float64 vectors on the device. Without "
      "statistics the call does not wait for the device.");
  m.def("multiply", &multiply<float>, py::arg("matrix"), py::arg("x").noconvert(), py::arg("transpose").noconvert(),
        py::arg("scale_exponent") = 0);
  m.def("multiply", &multiply<double>, py::arg("matrix"), py::arg("x").noconvert(), py::arg("transpose").noconvert(),
        py::arg("scale_exponent") = 0, "As that of _core, with vectors in host memory.");
  m.def("plan_product", &plan_of, py::arg("kind"), py::arg("dtype"), py::arg("rows"), py::arg("cols"),
        py::arg("real_bytes"), py::arg("width"), py::arg("shared_bytes"), py::arg("largest_cluster"),
        "How a 'gram' or a 'plain' product with a rows x cols matrix is cut.");
  m.def("energies", &energies, py::arg("matrix"), py::arg("scale_exponent"),
        py::arg("factors").noconvert() = py::none(), "As that of _core.");
  m.def("gram_matrix", &gram_matrix, py::arg("matrix"), py::arg("scale_exponent"),
        py::arg("factors").noconvert() = py::none(),
        "Gram matrix of the short side in float64, and the non-finite entries of W.");
}

}  // namespace mpfast::python
