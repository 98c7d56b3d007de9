#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/coded_matrix.hpp"
#include "python/arguments.hpp"
#include "python/bindings.hpp"
#include "python/dtype_names.hpp"
#include "python/whole_class.hpp"

namespace mpfast::python {

namespace {

Matrix matrix_from_array(const py::array& array, const std::string& dtype) {
  return {view_of(array, parse_dtype(dtype), dtype), array};
}

Code parse_code(const std::string& name) {
  for (const Code code : kCodes) {
    if (name == code_name(code)) return code;
  }
  throw std::invalid_argument("there are no codes called " + name);
}

Matrix matrix_from_codes(const std::string& name, const py::array_t<std::uint8_t, 0>& codes,
                         const py::array_t<float, 0>& scales, index_t width, const std::string& dtype) {
  const Code code = parse_code(name);
  const DType type = parse_dtype(dtype);
  if (needs_double(type)) throw std::invalid_argument("codes stand for numbers of single precision");
  if (codes.ndim() != 2 || scales.ndim() != 2) throw std::invalid_argument("codes and scales must be 2-D arrays");
  if (width < 1) throw std::invalid_argument("width must be at least 1");
  const index_t cols = codes.shape(1) * codes_in_a_byte(code);
  width = std::min(width, std::max(cols, index_t{1}));
  if (scales.shape(0) != codes.shape(0) || scales.shape(1) != ceil_div(cols, width)) {
    throw std::invalid_argument("scales must have a row for each of codes, and a column for each block of a row");
  }
  constexpr index_t kScale = sizeof(float);
  const bool follow =
      (codes.strides(1) == 1 || codes.shape(1) < 2) && (scales.strides(1) == kScale || scales.shape(1) < 2);
  if (!follow) throw std::invalid_argument("codes and scales of a row must follow one another in memory");
  if (reinterpret_cast<std::uintptr_t>(scales.data()) % kScale != 0 || scales.strides(0) % kScale != 0) {
    throw std::invalid_argument("scales do not lie at multiples of their size");
  }
  const CodedMatrix matrix{.codes = codes.data(),
                           .type = code,
                           .rows = codes.shape(0),
                           .cols = cols,
                           .row_stride = codes.strides(0),
                           .scales = scales.data(),
                           .scale_stride = scales.strides(0) / kScale,
                           .width = width};
  return {cpu::Source(matrix, type), py::make_tuple(name, codes, scales, width)};
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
