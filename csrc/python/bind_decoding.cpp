#include <stdexcept>

#include "cpu/decoding/scaled_codes.hpp"
#include "python/bindings.hpp"

namespace mpfast::python {

namespace {

template <class T>
using Block = py::array_t<T, py::array::c_style>;

Block<float> scaled_codes(const Block<std::uint8_t>& codes, const Block<float>& table, const Block<float>& scales,
                          index_t width) {
  if (codes.ndim() != 2) throw std::invalid_argument("codes must be a 2-D array");
  if (table.ndim() != 2 || table.shape(0) != 256 || (table.shape(1) != 1 && table.shape(1) != 2)) {
    throw std::invalid_argument("table must be of shape (256, 1) or (256, 2)");
  }
  if (width < 1) throw std::invalid_argument("width must be at least 1");
  const cpu::ScaledCodes stored{.codes = codes.data(),
                                .rows = codes.shape(0),
                                .bytes = codes.shape(1),
                                .table = table.data(),
                                .values = table.shape(1),
                                .scales = scales.data(),
                                .width = width};
  if (scales.ndim() != 2 || scales.shape(0) != stored.rows || scales.shape(1) != stored.blocks()) {
    throw std::invalid_argument("scales must have a row for each of codes, and a column for each block of a row");
  }
  Block<float> numbers({stored.rows, stored.cols()});
  float* const out = numbers.mutable_data();
  {
    const InCore core;
    cpu::decode(stored, out);
  }
  return numbers;
}

}  // namespace

void register_decoding(py::module_& m) {
  m.def("scaled_codes", &scaled_codes, py::arg("codes").noconvert(), py::arg("table").noconvert(),
        py::arg("scales").noconvert(), py::arg("width"),
        "The numbers (rows, K) that codes (rows, K / values) stand for: table (256, values) of each byte, times scales "
        "(rows, blocks) of `width` entries each.");
}

}  // namespace mpfast::python
