#include <string>

#include "python/arguments.hpp"
#include "python/bindings.hpp"
#include "python/dtype_names.hpp"
#include "python/whole_class.hpp"

namespace mpfast::python {

namespace {

Matrix matrix_from_array(const py::array& array, const std::string& dtype) {
  return {view_of(array, parse_dtype(dtype), dtype), array};
}

}  // namespace

void register_matrix(py::module_& m) {
  whole_class<Matrix>(m, "Matrix", "A read-only view of a 2-D array in host memory; keeps its owner alive.")
      .def(py::init(&matrix_from_array), py::arg("array"), py::arg("dtype"))
      .def_property_readonly("shape", [](const Matrix& w) { return py::make_tuple(w.view.rows, w.view.cols); })
      .def_property_readonly("dtype", [](const Matrix& w) { return dtype_name(w.view.dtype); })
      .def_property_readonly("owner", [](const Matrix& w) { return w.owner.object(); });
}

}  // namespace mpfast::python
