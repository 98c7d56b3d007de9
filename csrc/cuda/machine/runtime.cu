#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "cuda/machine/device_platform.hpp"
#include "cuda/machine/runtime.hpp"

namespace mpfast::cuda {

namespace {

std::string dotted(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

// A pool of our own on each device. Memory that was given back stays with it, up to a point: a run allocates the same
// few sizes again and again. The device's default pool is left as other libraries of the process set it up. Pools last
// as long as the process. Null where the device has none, as some virtual GPUs.
cudaMemPool_t pool_of(int device) {
  constexpr std::uint64_t kKept = std::uint64_t{256} << 20;
  static std::mutex mutex;
  static std::map<int, cudaMemPool_t> pools;
  const std::lock_guard lock(mutex);
  const auto found = pools.find(device);
  if (found != pools.end()) return found->second;
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  cudaMemPool_t pool{};
  if (attribute(cudaDevAttrMemoryPoolsSupported, device) != 0) {
    const cudaError_t status = cudaMemPoolCreate(&pool, &properties);
    if (status == cudaErrorNotSupported) {
      cudaGetLastError();
      pool = nullptr;
    } else {
      check(status, "cudaMemPoolCreate");
      std::uint64_t kept = kKept;
      check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept), "cudaMemPoolSetAttribute");
    }
  }
  pools.emplace(device, pool);
  return pool;
}

}  // namespace

int device_count(std::string* why) {
  int driver = 0;
  int count = 0;
  std::string reason;
  cudaError_t status = cudaDriverGetVersion(&driver);
  if (status == cudaSuccess && driver == 0) {
    reason = "no NVIDIA driver was found";
  } else {
    status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess) {
      reason = cudaGetErrorString(status);
      if (status == cudaErrorInsufficientDriver) {
        reason += ": the driver supports CUDA " + dotted(driver) + ", this build needs " + dotted(CUDART_VERSION);
      }
      cudaGetLastError();
      count = 0;
    } else if (count == 0) {
      reason = "the driver sees no GPU";
    }
  }
  if (why != nullptr) *why = reason;
  return count;
}

std::string driver_version() {
  int version = 0;
  check(cudaDriverGetVersion(&version), "cudaDriverGetVersion");
  return dotted(version);
}

DeviceDescription describe(int device) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return {properties.name, properties.major, properties.minor, properties.multiProcessorCount,
          properties.totalGlobalMem};
}

DeviceLimits limits_of(int device) {
  const bool clusters =
      attribute(cudaDevAttrComputeCapabilityMajor, device) >= 9 && attribute(cudaDevAttrClusterLaunch, device) != 0;
  return {static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)), clusters ? 8 : 1};
}

int device_of(const void* address) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, address), "cudaPointerGetAttributes");
  const bool there = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  return there ? attributes.device : -1;
}

std::size_t free_memory(int device) {
  const OnDevice current(device);
  std::size_t free = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

Stream create_stream(int device) {
  const OnDevice current(device);
  cudaStream_t handle{};
  check(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return {device, handle};
}

void destroy_stream(Stream stream) noexcept { cudaStreamDestroy(handle_of(stream)); }

void* allocate(Stream stream, std::size_t bytes) {
  const OnDevice current(stream.device);
  void* memory = nullptr;
  const std::size_t wanted = bytes == 0 ? 1 : bytes;
  const cudaMemPool_t pool = pool_of(stream.device);
  const cudaError_t status =
      pool == nullptr ? cudaMalloc(&memory, wanted) : cudaMallocFromPoolAsync(&memory, wanted, pool, handle_of(stream));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw OutOfMemory(bytes);
  }
  check(status, pool == nullptr ? "cudaMalloc" : "cudaMallocFromPoolAsync");
  return memory;
}

void release(Stream stream, void* memory) noexcept {
  // The default stream's handle means that of the current device.
  int before = 0;
  if (cudaGetDevice(&before) != cudaSuccess) return;
  if (before != stream.device) cudaSetDevice(stream.device);
  if (pool_of(stream.device) == nullptr) {
    cudaStreamSynchronize(handle_of(stream));  // what was launched before may still use it
    cudaFree(memory);
  } else {
    cudaFreeAsync(memory, handle_of(stream));
  }
  if (before != stream.device) cudaSetDevice(before);
}

void copy(Stream stream, void* to, const void* from, std::size_t bytes) {
  const OnDevice current(stream.device);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, handle_of(stream)), "cudaMemcpyAsync");
}

void copy_rows(Stream stream, void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
               std::size_t bytes, std::size_t rows) {
  const OnDevice current(stream.device);
  check(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, bytes, rows, cudaMemcpyDefault, handle_of(stream)),
        "cudaMemcpy2DAsync");
}

void synchronize(Stream stream) {
  const OnDevice current(stream.device);
  check(cudaStreamSynchronize(handle_of(stream)), "cudaStreamSynchronize");
}

}  // namespace mpfast::cuda
