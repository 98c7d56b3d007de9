// platform.hpp as nvcc compiles it.
#pragma once

#include <cooperative_groups.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <string>
#include <type_traits>

#include "cuda/machine/grid.hpp"
#include "cuda/machine/runtime.hpp"

namespace mpfast::cuda {

inline void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // the error has been taken note of: later calls start afresh
  throw Error(std::string(call) + ": " + cudaGetErrorString(status));
}

// Makes a device current for a scope.
class OnDevice {
 public:
  explicit OnDevice(int device) : device_(device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != device_) check(cudaSetDevice(device_), "cudaSetDevice");
  }
  ~OnDevice() {
    if (before_ != device_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int device_;
  int before_ = 0;
};

inline cudaStream_t handle_of(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

template <class T>
__device__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char mpfast_shared_memory[];
  return reinterpret_cast<T*>(mpfast_shared_memory);
}

__device__ inline void cluster_sync([[maybe_unused]] unsigned size) {
#if __CUDA_ARCH__ >= 900
  if (size > 1) return cooperative_groups::this_cluster().sync();
#endif
  __syncthreads();
}

template <class T>
__device__ T* shared_memory_of(T* p, [[maybe_unused]] unsigned rank) {
#if __CUDA_ARCH__ >= 900
  return cooperative_groups::this_cluster().map_shared_rank(p, rank);
#else
  return p;
#endif
}

template <class T>
__device__ void copy_word_async(T* shared, const T* global) {
  __pipeline_memcpy_async(shared, global, sizeof(T));
}

__device__ inline void wait_for_copies() {
  __pipeline_commit();
  __pipeline_wait_prior(0);
}

__device__ inline void prefetch_to_l2(const void* global) { asm volatile("prefetch.global.L2 [%0];" ::"l"(global)); }

// How a kernel is to be launched, in the runtime's terms.
class LaunchConfig {
 public:
  template <class... Parameters>
  LaunchConfig(Stream stream, const Grid& grid, void (*kernel)(Parameters...)) {
    config_.gridDim = dim3(grid.x, grid.y);
    config_.blockDim = dim3(grid.threads);
    config_.dynamicSmemBytes = grid.shared_bytes;
    config_.stream = handle_of(stream);
    if (grid.cluster > 1) {
      cluster_.id = cudaLaunchAttributeClusterDimension;
      cluster_.val.clusterDim.x = grid.cluster;
      cluster_.val.clusterDim.y = 1;
      cluster_.val.clusterDim.z = 1;
      config_.attrs = &cluster_;
      config_.numAttrs = 1;
    }
    if (grid.shared_bytes > 48 * 1024) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(grid.shared_bytes)),
            "cudaFuncSetAttribute");
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;
  LaunchConfig& operator=(const LaunchConfig&) = delete;

  const cudaLaunchConfig_t* get() const { return &config_; }

 private:
  cudaLaunchConfig_t config_{};
  cudaLaunchAttribute cluster_{};
};

// Multiprocessors come in groups of which some may lack a few, and a part of a device (MIG) has fewer: a cluster of
// many blocks that take much shared memory may find no place.
template <class... Parameters>
bool cluster_fits(Stream stream, const Grid& grid, void (*kernel)(Parameters...)) {
  if (grid.cluster <= 1) return true;
  const OnDevice current(stream.device);
  const LaunchConfig config(stream, grid, kernel);
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, config.get()) == cudaSuccess) return clusters > 0;
  cudaGetLastError();
  return false;
}

template <class... Parameters>
void launch(Stream stream, const Grid& grid, void (*kernel)(Parameters...),
            const std::type_identity_t<Parameters>&... arguments) {
  const OnDevice current(stream.device);
  const LaunchConfig config(stream, grid, kernel);
  check(cudaLaunchKernelEx(config.get(), kernel, arguments...), "cudaLaunchKernelEx");
}

}  // namespace mpfast::cuda
