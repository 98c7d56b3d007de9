#include <stdexcept>
#include <string>

#include "python/bindings.hpp"
#include "python/dtype_names.hpp"

namespace mpfast::python {

namespace {

// `array` may hold the raw bits of a type NumPy lacks: only its memory and strides are used.
Matrix matrix_from_array(const py::array& array, const std::string& dtype) {
  const DType type = parse_dtype(dtype);
  const auto bytes = static_cast<index_t>(size_of(type));
  if (array.ndim() != 2) throw std::invalid_argument("expected a 2-D array");
  if (array.itemsize() != bytes) throw std::invalid_argument("the array's item size is not that of " + dtype);
  if (array.strides(0) % bytes != 0 || array.strides(1) % bytes != 0) {
    throw std::invalid_argument("strides must be whole multiples of the item size");
  }
  return {{array.data(), type, array.shape(0), array.shape(1), array.strides(0) / bytes, array.strides(1) / bytes},
          array};
}

}  // namespace

void register_matrix(py::module_& m) {
  py::class_<Matrix>(m, "Matrix", "A read-only view of a 2-D array in host memory; keeps its owner alive.")
      .def(py::init(&matrix_from_array), py::arg("array"), py::arg("dtype"))
      .def_property_readonly("shape", [](const Matrix& w) { return py::make_tuple(w.view.rows, w.view.cols); })
      .def_property_readonly("dtype", [](const Matrix& w) { return dtype_name(w.view.dtype); })
      .def_property_readonly("owner", [](const Matrix& w) { return w.owner; });
}

}  // namespace mpfast::python
