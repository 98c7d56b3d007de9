// cuda/machine/runtime.hpp with the host's memory in the place of a device's.
#include "cuda/machine/runtime.hpp"

#include <cstdlib>
#include <cstring>

namespace mpfast::cuda {

int device_count(std::string*) { return 1; }
std::string driver_version() { return "emulated"; }
DeviceDescription describe(int) { return {"emulated", 9, 0, 1, std::size_t{1} << 30}; }
DeviceLimits limits_of(int) {
  // Tests choose between a device with clusters and one without.
  const char* const cluster = std::getenv("MPFAST_EMULATED_CLUSTER");
  return {std::size_t{227} << 10, cluster == nullptr ? 8 : std::atoi(cluster)};
}
int device_of(const void*) { return 0; }
std::size_t free_memory(int) { return std::size_t{1} << 30; }

Stream create_stream(int device) { return {device, nullptr}; }
void destroy_stream(Stream) noexcept {}

void* allocate(Stream, std::size_t bytes) {
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw OutOfMemory(bytes);
  std::memset(memory, 0xff, bytes);  // NaN, until somebody writes to it
  return memory;
}
void release(Stream, void* memory) noexcept { std::free(memory); }

void copy(Stream, void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
void copy_rows(Stream, void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t bytes,
               std::size_t rows) {
  for (std::size_t i = 0; i < rows; ++i) {
    std::memcpy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch, bytes);
  }
}
void synchronize(Stream) {}

}  // namespace mpfast::cuda
