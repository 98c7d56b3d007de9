// Uninitialised, cache-line aligned storage that says how much memory was missing when there is none.
#pragma once

#include <cstddef>
#include <limits>
#include <memory>
#include <new>
#include <string>

#include "core/types.hpp"

namespace mpfast::cpu {

// Reaches Python as MemoryError with this message.
class AllocationError : public std::bad_alloc {
 public:
  AllocationError(const char* what_for, double bytes)
      : message_(std::string("cannot allocate ") + std::to_string(static_cast<long long>(bytes)) + " bytes for " +
                 what_for) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

template <class T>
class Buffer {
 public:
  static constexpr std::align_val_t kAlignment{64};

  Buffer() = default;
  Buffer(index_t rows, index_t cols, const char* what_for) {
    const double bytes = static_cast<double>(rows) * static_cast<double>(cols) * sizeof(T);
    if (bytes >= static_cast<double>(std::numeric_limits<std::ptrdiff_t>::max())) {
      throw AllocationError(what_for, bytes);
    }
    const auto count = static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols);
    data_.reset(static_cast<T*>(::operator new(count * sizeof(T), kAlignment, std::nothrow)));
    if (!data_) throw AllocationError(what_for, bytes);
  }

  T* get() { return data_.get(); }
  const T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<T, Free> data_;
};

// Leading dimension for columns of `rows` doubles: a whole number of cache lines, but never a multiple of a large power
// of two, which would map the columns of a tile onto the same few cache sets.
constexpr index_t padded_leading_dimension(index_t rows) {
  const index_t lines = (rows + 7) / 8;
  return 8 * (lines | 1);
}

}  // namespace mpfast::cpu
