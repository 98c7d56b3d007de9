#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "cuda/masks/masks.hpp"
#include "cuda/products/dense_product.hpp"
#include "cuda/reconstruct/columns.hpp"
#include "cuda/reconstruct/refit.hpp"
#include "cuda/reconstruct/storage.hpp"
#include "masks/projection.hpp"
#include "python/arguments.hpp"
#include "python/cuda/bindings.hpp"
#include "python/whole_class.hpp"
#include "reconstruct/rounding.hpp"

namespace mpfast::python {

namespace {

using reconstruct::ColumnChoice;
using reconstruct::ColumnsProblem;
using Floats = py::array_t<float, py::array::c_style>;

std::size_t bytes_of(index_t floats) { return static_cast<std::size_t>(floats) * sizeof(float); }

// The entries of a float32 matrix that lies row by row on the device.
const float* entries_of(const DeviceMatrix& matrix, index_t rows, index_t cols, int device, const char* name) {
  const MatrixView& view = matrix.view();
  // The stride along a side of one entry is anything.
  const bool by_rows = (cols == 1 || view.col_stride == 1) && (rows == 1 || view.row_stride == cols);
  const bool whole = view.dtype == DType::float32 && by_rows;
  if (view.rows == rows && view.cols == cols && whole && matrix.stream.device == device) {
    return static_cast<const float*>(view.data);
  }
  throw std::invalid_argument(std::string(name) +
                              " must be float32 without gaps, of the right shape and on the device");
}

void check_positive(float value, const char* name) {
  if (!(value > 0 && std::isfinite(value))) throw std::invalid_argument(std::string(name) + " must be positive");
}

// The weights of a layer on their way, in device memory: as they were and as they are, in single precision and in units
// of the caller's choice, and which of them stay.
class LayerWeights {
 public:
  LayerWeights(const DeviceMatrix& matrix, double factor, const std::optional<Floats>& rows)
      : rows_(matrix.view().rows), cols_(matrix.view().cols), dtype_(matrix.view().dtype), stream_(matrix.stream) {
    check_not_empty(matrix.view());
    check_scale(factor);
    if (rows && (rows->ndim() != 1 || rows->shape(0) != rows_)) {
      throw std::invalid_argument("rows must have a factor for each row");
    }
    const float* const row_factors = rows ? rows->data() : nullptr;
    const InCore core;
    target_ = cuda::DeviceBuffer<float>(stream_, entries());
    values_ = cuda::DeviceBuffer<float>(stream_, entries());
    keep_ = cuda::DeviceBuffer<std::uint8_t>(stream_, entries());
    if (row_factors != nullptr) {
      row_factors_ = cuda::DeviceBuffer<float>(stream_, rows_);
      cuda::copy(stream_, row_factors_.get(), row_factors, bytes_of(rows_));
    }
    cuda::load_weights(stream_, matrix.view(), factor, row_factors_.get(), target_.get());
    cuda::copy(stream_, values_.get(), target_.get(), bytes_of(entries()));
    cuda::keep_all(stream_, keep_.get(), entries());
    cuda::synchronize(stream_);
  }

  std::pair<index_t, index_t> shape() const { return {rows_, cols_}; }

  void take_mask(std::uintptr_t keep) {
    if (keep == 0) throw std::invalid_argument("a mask has no address");
    const InCore core;
    cuda::copy(stream_, keep_.get(), reinterpret_cast<const void*>(keep), static_cast<std::size_t>(entries()));
    cuda::synchronize(stream_);
  }

  index_t kept() const {
    const InCore core;
    return cuda::count_kept(stream_, keep_.get(), entries());
  }

  // With a grid, its scales and zeros.
  py::object obs_columns(const DeviceMatrix& factor, std::optional<index_t> pruned,
                         std::optional<std::pair<int, int>> pattern,
                         std::optional<std::tuple<int, index_t, bool>> grid) {
    ColumnsProblem problem;
    problem.rows = rows_;
    problem.cols = cols_;
    problem.weights = values_.get();
    problem.keep = keep_.get();
    problem.factor = entries_of(factor, cols_, cols_, stream_.device, "factor");
    choose(problem, pruned, pattern);
    Floats scale;
    Floats zero;
    if (grid) {
      const auto [bits, group, symmetric] = *grid;
      if (bits < 1 || bits > reconstruct::kMostBits || group < 1 || group > cols_) {
        throw std::invalid_argument("bits must lie in [1, 8], and group between 1 and the number of columns");
      }
      if (pattern && group != cols_ && group % problem.m != 0) {
        throw std::invalid_argument("m must divide the columns of a grid");
      }
      if (symmetric && bits < 2) throw std::invalid_argument("a symmetric grid is of 2 bits or more");
      problem.bits = bits;
      problem.symmetric = symmetric;
      problem.group = group;
      scale = Floats({rows_, ceil_div(cols_, group)});
      zero = Floats({rows_, ceil_div(cols_, group)});
    }
    float* const scales = scale.mutable_data();
    float* const zeros = zero.mutable_data();
    const index_t grids = grid ? scale.size() : 0;
    {
      const InCore core;
      const cuda::DeviceBuffer<float> scales_there(stream_, grids);
      const cuda::DeviceBuffer<float> zeros_there(stream_, grids);
      problem.scale = scales_there.get();
      problem.zero = zeros_there.get();
      cuda::obs_columns(stream_, problem, core.poll());
      cuda::copy(stream_, scales, scales_there.get(), bytes_of(grids));
      cuda::copy(stream_, zeros, zeros_there.get(), bytes_of(grids));
      cuda::synchronize(stream_);
    }
    if (!grid) return py::none();
    return py::make_tuple(scale, zero);
  }

  void refit(const DeviceMatrix& symmetric, const DeviceMatrix& roots,
             const std::optional<std::reference_wrapper<const DeviceMatrix>>& basis, float base, int steps) {
    constexpr int kMostSteps = 10000;  // as that of _core
    if (steps < 0 || steps > kMostSteps) throw std::invalid_argument("steps must lie between 0 and 10000");
    check_positive(base, "base");
    cuda::RefitProblem problem;
    problem.rows = rows_;
    problem.cols = cols_;
    problem.target = target_.get();
    problem.weights = values_.get();
    problem.keep = keep_.get();
    problem.symmetric = entries_of(symmetric, cols_, cols_, stream_.device, "symmetric");
    problem.roots = entries_of(roots, 1, cols_, stream_.device, "roots");
    if (basis) {
      problem.width = basis->get().view().cols;
      if (problem.width > cuda::kMostDirections) throw std::invalid_argument("basis has more than 96 columns");
      problem.basis = entries_of(*basis, cols_, problem.width, stream_.device, "basis");
    }
    problem.base = base;
    problem.steps = steps;
    const InCore core;
    cuda::refit(stream_, problem, core.poll());
  }

  void scale_rows(const DeviceMatrix& symmetric, const DeviceMatrix& roots, const DeviceMatrix& shares, float least,
                  float largest, float rounding) {
    check_positive(least, "least");
    check_positive(largest, "largest");
    cuda::ScaleProblem problem;
    problem.rows = rows_;
    problem.cols = cols_;
    problem.target = target_.get();
    problem.weights = values_.get();
    problem.symmetric = entries_of(symmetric, cols_, cols_, stream_.device, "symmetric");
    problem.roots = entries_of(roots, 1, cols_, stream_.device, "roots");
    problem.shares = entries_of(shares, 1, cols_, stream_.device, "shares");
    problem.least = least;
    problem.largest = largest;
    problem.rounding = rounding;
    const InCore core;
    cuda::scale_rows(stream_, problem);
  }

  void store(std::uintptr_t weights, std::uintptr_t keep, double factor) const {
    if (weights == 0 || keep == 0) throw std::invalid_argument("the weights or the mask have no address");
    check_scale(factor);
    const InCore core;
    cuda::store_weights(stream_, rows_, cols_, values_.get(), factor, row_factors_.get(), dtype_,
                        reinterpret_cast<void*>(weights));
    cuda::copy(stream_, reinterpret_cast<void*>(keep), keep_.get(), static_cast<std::size_t>(entries()));
    cuda::synchronize(stream_);
  }

 private:
  index_t entries() const { return rows_ * cols_; }

  void choose(ColumnsProblem& problem, std::optional<index_t> pruned,
              std::optional<std::pair<int, int>> pattern) const {
    if (pruned && pattern) throw std::invalid_argument("pruned and pattern exclude each other");
    if (pruned) {
      if (*pruned < 0 || *pruned > entries()) {
        throw std::invalid_argument("pruned must lie between 0 and the number of entries");
      }
      problem.choice = ColumnChoice::smallest;
      problem.pruned = *pruned;
    }
    if (pattern) {
      const auto [n, m] = *pattern;
      if (m < 1 || m > masks::kLargestTable || n < 1 || n > m || cols_ % m != 0) {
        throw std::invalid_argument("need 1 <= n <= m <= 16, and m must divide the number of columns");
      }
      problem.choice = ColumnChoice::groups;
      problem.n = n;
      problem.m = m;
    }
  }

  index_t rows_;
  index_t cols_;
  DType dtype_;
  cuda::Stream stream_;
  cuda::DeviceBuffer<float> target_;
  cuda::DeviceBuffer<float> values_;
  cuda::DeviceBuffer<float> row_factors_;
  cuda::DeviceBuffer<std::uint8_t> keep_;
};

double largest_magnitude(const DeviceMatrix& w) {
  check_not_empty(w.view());
  const InCore core;
  return cuda::largest_magnitude(w.stream, w.view());
}

void gather(const DeviceMatrix& w, std::uintptr_t to) {
  check_not_empty(w.view());
  if (to == 0) throw std::invalid_argument("there is no address to copy to");
  const InCore core;
  cuda::gather_sample(w.stream, w.view(), 1, 1, w.view().rows, w.view().cols, reinterpret_cast<void*>(to));
  cuda::synchronize(w.stream);
}

py::tuple find_nonfinite(const DeviceMatrix& w) {
  check_not_empty(w.view());
  const cuda::ScoredMatrix matrix{w.view(), 1, nullptr};
  cuda::NonFinite found;
  {
    const InCore core;
    found = cuda::describe_nonfinite(w.stream, {&matrix, 1});
  }
  return py::make_tuple(found.count, found.first);
}

Floats dense_product(const DeviceMatrix& a, const DeviceMatrix& b) {
  check_not_empty(a.view());
  check_not_empty(b.view());
  const index_t rows = a.view().rows;
  const index_t depth = a.view().cols;
  const index_t cols = b.view().cols;
  const float* const left = entries_of(a, rows, depth, a.stream.device, "a");
  const float* const right = entries_of(b, depth, cols, a.stream.device, "b");
  Floats product({rows, cols});
  float* const to = product.mutable_data();
  const InCore core;
  const cuda::DeviceBuffer<float> there(a.stream, rows * cols);
  cuda::dense_product(a.stream, {left, rows, depth, depth}, {right, depth, cols, cols}, cuda::Into::store,
                      {there.get(), rows, cols, cols});
  cuda::copy(a.stream, to, there.get(), bytes_of(rows * cols));
  cuda::synchronize(a.stream);
  return product;
}

}  // namespace

void register_cuda_reconstruct(py::module_& m) {
  whole_class<LayerWeights>(m, "LayerWeights",
                            "The weights of a layer on their way, in single precision, and their mask.")
      .def(py::init<const DeviceMatrix&, double, const std::optional<Floats>&>(), py::arg("matrix"), py::arg("factor"),
           py::arg("rows").noconvert())
      .def_property_readonly("shape", &LayerWeights::shape)
      .def_property_readonly("kept", &LayerWeights::kept)
      .def("take_mask", &LayerWeights::take_mask, py::arg("keep"),
           "The address of a mask without gaps, on the host or the device.")
      .def("obs_columns", &LayerWeights::obs_columns, py::arg("factor"), py::arg("pruned"), py::arg("pattern"),
           py::arg("grid"),
           "As that of _core, for m <= 16; `grid`: bits and columns of a group, whose scales and zeros are returned.")
      .def("refit", &LayerWeights::refit, py::arg("symmetric"), py::arg("roots"), py::arg("basis"), py::arg("base"),
           py::arg("steps"), "As that of _core.")
      .def("scale_rows", &LayerWeights::scale_rows, py::arg("symmetric"), py::arg("roots"), py::arg("shares"),
           py::arg("least"), py::arg("largest"), py::arg("rounding"),
           "Multiplies each row with what brings it nearest to its target by the undamped moment.")
      .def("store", &LayerWeights::store, py::arg("weights"), py::arg("keep"), py::arg("factor"),
           "Writes the weights times a factor in their matrix's type, and the mask, to these addresses.");
  m.def("largest_magnitude", &largest_magnitude, py::arg("matrix"), "Infinity when an entry is not finite.");
  m.def("gather", &gather, py::arg("matrix"), py::arg("to"),
        "Copies the entries, row by row, to this address on the device.");
  m.def("find_nonfinite", &find_nonfinite, py::arg("matrix"),
        "How many entries are not finite, and the row-major index of the first; there must be one.");
  m.def("dense_product", &dense_product, py::arg("a"), py::arg("b"), "Product of two float32 matrices, on the host.");
}

}  // namespace mpfast::python
