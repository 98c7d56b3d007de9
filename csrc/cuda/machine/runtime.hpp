// The part of the CUDA runtime that host code uses, without its headers: devices, streams, memory, copies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/types.hpp"

namespace mpfast::cuda {

// A call into the CUDA runtime failed.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The device has too little memory; reaches Python as MemoryError.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::size_t bytes)
      : message_("cannot allocate " + std::to_string(bytes) + " bytes on the GPU") {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// Work on one stream runs in order. The handle is a cudaStream_t; null is the device's default stream. Not owned.
struct Stream {
  int device = 0;
  void* handle = nullptr;
};

// What products are planned with (products/product_plan.cpp).
struct DeviceLimits {
  std::size_t shared_bytes = 0;  // dynamic shared memory a block may have
  int largest_cluster = 1;       // blocks per cluster; 1 where the device has no clusters
};

struct DeviceDescription {
  std::string name;
  int major = 0;
  int minor = 0;
  int multiprocessors = 0;
  std::size_t memory_bytes = 0;
};

// How many devices there are. Zero is no error: `why`, when not null, then says what is missing.
int device_count(std::string* why);
std::string driver_version();
DeviceDescription describe(int device);
DeviceLimits limits_of(int device);
// The device that memory at this address belongs to; -1 for host memory.
int device_of(const void* address);
std::size_t free_memory(int device);

Stream create_stream(int device);
void destroy_stream(Stream stream) noexcept;

// A stream of our own.
class OwnStream {
 public:
  explicit OwnStream(int device) : stream_(create_stream(device)) {}
  ~OwnStream() { destroy_stream(stream_); }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;

  operator Stream() const { return stream_; }

 private:
  Stream stream_;
};

// Memory ordered with the stream: usable by what is launched after it, reusable after what was launched before.
void* allocate(Stream stream, std::size_t bytes);
void release(Stream stream, void* memory) noexcept;
// In stream order; with pageable host memory the call returns when the host side may be reused.
void copy(Stream stream, void* to, const void* from, std::size_t bytes);
// Copies `rows` pieces of `bytes` bytes each, whose starts are a pitch apart, as copy() does.
void copy_rows(Stream stream, void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
               std::size_t bytes, std::size_t rows);
void synchronize(Stream stream);

// Uninitialised device memory that belongs to a stream.
template <class T>
class DeviceBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  DeviceBuffer() = default;
  DeviceBuffer(Stream stream, index_t count)
      : stream_(stream),
        data_(static_cast<T*>(allocate(stream, static_cast<std::size_t>(count) * sizeof(T)))),
        size_(count) {}
  DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    DeviceBuffer taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~DeviceBuffer() {
    if (data_ != nullptr) release(stream_, data_);
  }

  T* get() const { return data_; }
  index_t size() const { return size_; }

  // At least `count` entries; their values are lost when the buffer has to grow.
  T* grown_to(Stream stream, index_t count) {
    if (size_ < count) {
      *this = {};
      *this = DeviceBuffer(stream, count);
    }
    return data_;
  }

 private:
  void swap(DeviceBuffer& other) noexcept {
    std::swap(stream_, other.stream_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

  Stream stream_;
  T* data_ = nullptr;
  index_t size_ = 0;
};

template <class T>
std::vector<T> to_host(Stream stream, const T* from, index_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  copy(stream, values.data(), from, values.size() * sizeof(T));
  synchronize(stream);
  return values;
}

}  // namespace mpfast::cuda
