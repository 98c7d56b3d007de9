// Uninitialised, cache-line aligned storage that says how much memory was missing when there is none.
#pragma once

#include <cstddef>
#include <limits>
#include <memory>
#include <new>
#include <string>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "core/types.hpp"

namespace mpfast {

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
  // A huge page of x86-64 and aarch64: large buffers ask for such pages, since the columns of a tall matrix lie on more
  // small pages than the TLB holds, and faulting small pages in costs milliseconds.
  static constexpr std::size_t kHugePage = std::size_t{1} << 21;

  Buffer() = default;
  Buffer(index_t rows, index_t cols, const char* what_for) {
    const double bytes = static_cast<double>(rows) * static_cast<double>(cols) * sizeof(T);
    if (bytes >= static_cast<double>(std::numeric_limits<std::ptrdiff_t>::max())) {
      throw AllocationError(what_for, bytes);
    }
    const auto count = static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols);
    const std::size_t size = count * sizeof(T);
    const std::align_val_t alignment{size >= 2 * kHugePage ? kHugePage : 64};
    data_ = {static_cast<T*>(::operator new(size, alignment, std::nothrow)), Free{alignment}};
    if (!data_) throw AllocationError(what_for, bytes);
#ifdef __linux__
    if (size >= 2 * kHugePage) madvise(data_.get(), size, MADV_HUGEPAGE);  // a hint: failing is fine
#endif
  }

  T* get() { return data_.get(); }
  const T* get() const { return data_.get(); }

 private:
  struct Free {
    std::align_val_t alignment{64};
    void operator()(T* data) const { ::operator delete(data, alignment); }
  };
  std::unique_ptr<T, Free> data_;
};

// Leading dimension for columns of `rows` doubles: a whole number of cache lines, but never a multiple of a large power
// of two, which would map the columns of a tile onto the same few cache sets.
constexpr index_t padded_leading_dimension(index_t rows) {
  const index_t lines = (rows + 7) / 8;
  return 8 * (lines | 1);
}

}  // namespace mpfast
