#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/coded_matrix.hpp"
#include "python/arguments.hpp"
#include "python/bindings.hpp"
#include "python/code_arrays.hpp"
#include "python/dtype_names.hpp"
#include "python/whole_class.hpp"

namespace mpfast::python {

namespace {

Matrix matrix_from_array(const py::array& array, const std::string& dtype) {
  return {view_of(array, parse_dtype(dtype), dtype), array};
}

Matrix matrix_from_codes(const std::string& name, const py::array_t<std::uint8_t, 0>& codes,
                         const py::array_t<float, 0>& scales, index_t width, const std::string& dtype) {
  const DType type = parse_dtype(dtype);
  const CodedMatrix matrix = coded_view({name, codes, scales, width}, type);
  return {cpu::Source(matrix, type), py::make_tuple(name, codes, scales, matrix.width)};
}

py::array_t<float> decoded(const Matrix& matrix) {
  if (!matrix.source.is_coded()) throw std::invalid_argument("the matrix is not one of codes");
  const index_t cols = matrix.source.cols;
  py::array_t<float> numbers({matrix.source.rows, cols});
  float* const out = numbers.mutable_data();
  {
    const InCore core;
    matrix.source.decode(out, cols);
  }
  return numbers;
}

}  // namespace

void register_matrix(py::module_& m) {
  whole_class<Matrix>(m, "Matrix", "A read-only view of a 2-D array in host memory; keeps its owner alive.")
      .def(py::init(&matrix_from_array), py::arg("array"), py::arg("dtype"))
      .def_static(
          "of_codes", &matrix_from_codes, py::arg("code"), py::arg("codes").noconvert(), py::arg("scales").noconvert(),
          py::arg("width"), py::arg("dtype"),
          "A matrix of codes (rows, bytes), each times the scale of its block of `width` entries, (rows, blocks), "
          "in single precision; `dtype` holds the products.")
      .def_property_readonly("shape", [](const Matrix& w) { return py::make_tuple(w.source.rows, w.source.cols); })
      .def_property_readonly("dtype", [](const Matrix& w) { return dtype_name(w.source.dtype); })
      .def_property_readonly("is_coded", [](const Matrix& w) { return w.source.is_coded(); })
      .def_property_readonly("owner", [](const Matrix& w) { return w.owner.object(); })
      .def("decoded", &decoded, "The numbers of a matrix of codes, (rows, cols) in float32.");
  m.def(
      "code_names",
      [] {
        std::vector<std::string> names;
        for (const Code code : kCodes) names.emplace_back(code_name(code));
        return names;
      },
      "The types of codes that matrices are made of.");
}

}  // namespace mpfast::python
