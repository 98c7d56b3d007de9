#include <memory>
#include <string>
#include <utility>

#include "cuda/decoding/device_codes.hpp"
#include "cuda/products/vector_kernels.hpp"
#include "python/arguments.hpp"
#include "python/cuda/bindings.hpp"
#include "python/cuda/dlpack.hpp"
#include "python/dtype_names.hpp"
#include "python/whole_class.hpp"

namespace mpfast::python {

namespace {

cuda::Stream stream_of(int device, std::uintptr_t handle) {
  return {device, reinterpret_cast<void*>(handle)};  // NOLINT: a cudaStream_t, as Python frameworks hand it out
}

// The address and the handle are integers, as in __cuda_array_interface__ and DLPack; strides count entries.
DeviceMatrix matrix_at(std::uintptr_t address, const std::string& dtype, std::pair<index_t, index_t> shape,
                       std::pair<index_t, index_t> strides, int device, std::uintptr_t stream, py::object owner) {
  return {MatrixView{reinterpret_cast<const void*>(address), parse_dtype(dtype), shape.first, shape.second,
                     strides.first, strides.second},
          stream_of(device, stream), std::move(owner)};
}

DType dtype_of(const dlpack::DataType& type) {
  for (const DType dtype : kDTypes) {
    if (dlpack::is(type, dtype)) return dtype;
  }
  throw py::type_error(all_dtype_names() + " is needed");
}

// Takes the tensor out of a capsule of __dlpack__, which made it ready on the stream given.
DeviceMatrix matrix_from_dlpack(const py::capsule& capsule, std::uintptr_t stream) {
  if (PyCapsule_IsValid(capsule.ptr(), dlpack::kCapsule) == 0)
    throw std::invalid_argument("expected an unused DLPack capsule");
  auto* const managed = capsule.get_pointer<dlpack::ManagedTensor>();
  const dlpack::Tensor& tensor = managed->tensor;
  if (tensor.ndim != 2) throw std::invalid_argument("expected a 2-D tensor");
  const MatrixView view{static_cast<const char*>(tensor.data) + tensor.byte_offset,
                        dtype_of(tensor.dtype),
                        tensor.shape[0],
                        tensor.shape[1],
                        tensor.strides == nullptr ? tensor.shape[1] : tensor.strides[0],
                        tensor.strides == nullptr ? 1 : tensor.strides[1]};
  const int device = tensor.device.id;
  if (PyCapsule_SetName(capsule.ptr(), dlpack::kUsedCapsule) != 0) throw py::error_already_set();
  return {view, stream_of(device, stream), py::capsule(managed, [](void* p) {
            auto* const taken = static_cast<dlpack::ManagedTensor*>(p);
            if (taken->deleter != nullptr) taken->deleter(taken);
          })};
}

// Device memory that holds a copy of a matrix, and the stream it belongs to.
template <class Memory>
struct Upload {
  explicit Upload(int device) : stream(device) {}

  cuda::OwnStream stream;
  Memory memory;
};

template <class Memory>
DeviceMatrix owned(const cuda::Source& source, std::unique_ptr<Upload<Memory>> copy) {
  const cuda::Stream stream = copy->stream;
  return {source, stream, py::capsule(copy.release(), [](void* p) { delete static_cast<Upload<Memory>*>(p); })};
}

// A row-major copy of a C- or Fortran-contiguous array keeps its order.
DeviceMatrix upload_entries(const py::array& array, const std::string& dtype, int device) {
  const DType type = parse_dtype(dtype);
  const auto entry = static_cast<index_t>(size_of(type));
  check_not_empty(view_of(array, type, dtype));
  const index_t rows = array.shape(0);
  const index_t cols = array.shape(1);
  const bool by_rows = array.strides(1) == entry;
  if (!by_rows && array.strides(0) != entry) throw std::invalid_argument("expected a contiguous array");
  const index_t lines = by_rows ? rows : cols;
  const index_t length = by_rows ? cols : rows;
  const index_t step = array.strides(by_rows ? 0 : 1);
  if (lines > 1 && step < length * entry) throw std::invalid_argument("expected lines that do not overlap, in order");
  const auto pitch = static_cast<std::size_t>(step);
  auto copy = std::make_unique<Upload<cuda::DeviceBuffer<char>>>(device);
  copy->memory = cuda::DeviceBuffer<char>(copy->stream, rows * cols * entry);
  {
    const InCore core;
    const auto bytes = static_cast<std::size_t>(length * entry);
    if (lines == 1 || pitch == bytes) {
      cuda::copy(copy->stream, copy->memory.get(), array.data(), bytes * static_cast<std::size_t>(lines));
    } else {
      cuda::copy_rows(copy->stream, copy->memory.get(), bytes, array.data(), pitch, bytes,
                      static_cast<std::size_t>(lines));
    }
    cuda::synchronize(copy->stream);
  }
  const MatrixView view{copy->memory.get(), type, rows, cols, by_rows ? cols : 1, by_rows ? 1 : rows};
  return owned(view, std::move(copy));
}

// Codes and scales as they are stored.
DeviceMatrix upload_codes(const CodeArrays& arrays, const std::string& dtype, int device) {
  const DType type = parse_dtype(dtype);
  const CodedMatrix matrix = coded_view(arrays, type);
  check_not_empty(matrix);
  auto copy = std::make_unique<Upload<cuda::DeviceCodes>>(device);
  cuda::Source source;
  {
    const InCore core;
    source = copy->memory.sent(copy->stream, matrix, {0, matrix.rows, 0, matrix.cols}, type);
    cuda::synchronize(copy->stream);
  }
  return owned(source, std::move(copy));
}

DeviceMatrix upload(const HostMatrix& matrix, const std::string& dtype, int device) {
  if (const auto* const codes = std::get_if<CodeArrays>(&matrix)) return upload_codes(*codes, dtype, device);
  return upload_entries(std::get<py::array>(matrix), dtype, device);
}

// A row-major copy in host memory; a type that NumPy lacks as its bits, codes as their numbers. Any strides: entries
// are gathered on the device.
py::tuple download(const DeviceMatrix& w) {
  const DType dtype = w.source.dtype_in_tiles();
  const index_t rows = w.source.rows;
  const index_t cols = w.source.cols;
  py::array out(py::dtype(numpy_name(dtype)), {rows, cols});
  void* const to = out.mutable_data();
  {
    const InCore core;
    const index_t bytes = rows * cols * static_cast<index_t>(size_of(dtype));
    const cuda::DeviceBuffer<char> gathered(w.stream, bytes);
    cuda::gather_sample(w.stream, w.source, 1, 1, rows, cols, gathered.get());
    cuda::copy(w.stream, to, gathered.get(), static_cast<std::size_t>(bytes));
    cuda::synchronize(w.stream);
  }
  return py::make_tuple(out, dtype_name(dtype));
}

}  // namespace

void register_cuda_devices(py::module_& m) {
  py::register_exception<cuda::Error>(m, "CudaError", PyExc_RuntimeError);
  whole_class<DeviceMatrix>(m, "Matrix", "A read-only view of a 2-D array in device memory; keeps its owner alive.")
      .def(py::init(&matrix_at), py::arg("address"), py::arg("dtype"), py::arg("shape"), py::arg("strides"),
           py::arg("device"), py::arg("stream"), py::arg("owner"))
      .def_static("from_dlpack", &matrix_from_dlpack, py::arg("capsule"), py::arg("stream"))
      .def_static(
          "upload", &upload, py::arg("matrix"), py::arg("dtype"), py::arg("device"),
          "A copy of a host array with contiguous rows or columns, or of (type of codes, codes, scales, width), "
          "as of _core.Matrix.of_codes, with rows in order.")
      .def_property_readonly("shape",
                             [](const DeviceMatrix& w) { return py::make_tuple(w.source.rows, w.source.cols); })
      .def_property_readonly("dtype", [](const DeviceMatrix& w) { return dtype_name(w.source.dtype); })
      .def_property_readonly("is_coded", [](const DeviceMatrix& w) { return w.source.is_coded(); })
      .def_property_readonly("device", [](const DeviceMatrix& w) { return w.stream.device; });
  m.def("download", &download, py::arg("matrix"),
        "A row-major host copy, of codes their numbers, and the name of its type.");
  m.def(
      "device_count",
      [] {
        std::string why;
        const int count = cuda::device_count(&why);
        return py::make_tuple(count, why);
      },
      "Number of GPUs, and why there are none.");
  m.def("driver_version", &cuda::driver_version);
  m.def(
      "device_of", [](std::uintptr_t address) { return cuda::device_of(reinterpret_cast<const void*>(address)); },
      py::arg("address"), "The device that owns this memory; -1 for host memory.");
  m.def("free_memory", &cuda::free_memory, py::arg("device"), "Bytes.");
  m.def(
      "describe",
      [](int device) {
        const cuda::DeviceDescription d = cuda::describe(device);
        return py::make_tuple(d.name, std::to_string(d.major) + "." + std::to_string(d.minor), d.multiprocessors,
                              d.memory_bytes);
      },
      py::arg("device"), "Name, compute capability, multiprocessors, bytes of memory.");
}

}  // namespace mpfast::python
