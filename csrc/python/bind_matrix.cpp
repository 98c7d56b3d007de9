#include <stdexcept>
#include <string>

#include "python/bindings.hpp"

namespace mpfast::python {

namespace {

DType parse_dtype(const std::string& name) {
  if (name == "float64") return DType::float64;
  if (name == "float32") return DType::float32;
  if (name == "float16") return DType::float16;
  if (name == "bfloat16") return DType::bfloat16;
  throw std::invalid_argument("dtype must be float64, float32, float16 or bfloat16, not " + name);
}

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return "float64";
    case DType::float32:
      return "float32";
    case DType::float16:
      return "float16";
    default:
      return "bfloat16";
  }
}

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

cpu::Poll interrupt_poll() {
  return [] {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  };
}

void register_matrix(py::module_& m) {
  py::class_<Matrix>(m, "Matrix", "A read-only view of a 2-D array in host memory; keeps its owner alive.")
      .def(py::init(&matrix_from_array), py::arg("array"), py::arg("dtype"))
      .def_property_readonly("shape", [](const Matrix& w) { return py::make_tuple(w.view.rows, w.view.cols); })
      .def_property_readonly("dtype", [](const Matrix& w) { return dtype_name(w.view.dtype); })
      .def_property_readonly("owner", [](const Matrix& w) { return w.owner; });
}

}  // namespace mpfast::python
