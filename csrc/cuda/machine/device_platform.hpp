// platform.hpp as nvcc compiles it.
#pragma once

#include <cooperative_groups.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
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

__device__ inline void pair_sync() { asm volatile("bar.sync %0, 64;" ::"r"(threadIdx.x / 64 + 1) : "memory"); }

__device__ inline void cluster_sync([[maybe_unused]] int size) {
#if __CUDA_ARCH__ >= 900
  if (size > 1) return cooperative_groups::this_cluster().sync();
#endif
  __syncthreads();
}

__device__ inline unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

// An mbarrier, and the bytes that complete its phases.
struct Arrivals {
  std::uint64_t state;
};

__device__ inline void start_arrivals([[maybe_unused]] Arrivals* arrivals) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(arrivals)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ inline void expect_arrivals([[maybe_unused]] Arrivals* arrivals, [[maybe_unused]] int bytes,
                                       [[maybe_unused]] int size) {
#if __CUDA_ARCH__ >= 900
  if (size == 1) return;
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(arrivals)), "r"(bytes)
               : "memory");
#endif
}

template <class T>
__device__ void send(T* to, T value, [[maybe_unused]] Arrivals* arrivals, [[maybe_unused]] int rank,
                     [[maybe_unused]] int size) {
#if __CUDA_ARCH__ >= 900
  if (size > 1) {
    unsigned there = 0;
    unsigned told = 0;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(to)), "r"(rank));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(told) : "r"(shared_address(arrivals)), "r"(rank));
    if constexpr (sizeof(T) == 8) {
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(there),
                   "l"(__double_as_longlong(value)), "r"(told)
                   : "memory");
    } else {
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(there),
                   "r"(__float_as_uint(value)), "r"(told)
                   : "memory");
    }
    return;
  }
#endif
  *to = value;
}

__device__ inline void wait_for_arrivals([[maybe_unused]] Arrivals* arrivals, [[maybe_unused]] unsigned phase,
                                         [[maybe_unused]] int size) {
#if __CUDA_ARCH__ >= 900
  if (size > 1) {
    unsigned done = 0;
    while (done == 0) {
      asm volatile(
          "{\n.reg .pred p;\n"
          "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n}"
          : "=r"(done)
          : "r"(shared_address(arrivals)), "r"(phase % 2)
          : "memory");
    }
    return;
  }
#endif
  __syncthreads();
}

template <class T>
__device__ void copy_word_async(T* shared, const T* global) {
  __pipeline_memcpy_async(shared, global, sizeof(T));
}

template <int kBytes>
__device__ void copy_async(void* shared, const void* global) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  const unsigned to = shared_address(shared);
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(kBytes) : "memory");
  }
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ inline void wait_for_copies() {
  __pipeline_commit();
  __pipeline_wait_prior(0);
}

__device__ inline void prefetch_to_l2(const void* global) { asm volatile("prefetch.global.L2 [%0];" ::"l"(global)); }

// Two numbers, rounded to bfloat16, as the lower and the upper half of a word.
__device__ inline std::uint32_t bfloat16_pair(float low, float high) {
  std::uint32_t word = 0;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

template <bool kTransposed>
__device__ void load_matrices(std::uint32_t (&words)[4], const void* line) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(line))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(line))
                 : "memory");
  }
}

__device__ inline void add_matrix_product(float (&sum)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

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
// many blocks that take much shared memory may find no place. Asking takes longer than a launch, so that answers are
// kept for as long as the process lasts.
template <class... Parameters>
index_t places(Stream stream, const Grid& grid, void (*kernel)(Parameters...)) {
  using Question = std::tuple<void (*)(Parameters...), int, unsigned, std::size_t, unsigned>;
  static std::mutex mutex;
  static std::map<Question, index_t> answers;
  const Question question{kernel, stream.device, grid.threads, grid.shared_bytes, grid.cluster};
  const std::lock_guard lock(mutex);
  const auto found = answers.find(question);
  if (found != answers.end()) return found->second;
  const OnDevice current(stream.device);
  const LaunchConfig config(stream, grid, kernel);
  int count = 0;
  cudaError_t status{};
  if (grid.cluster > 1) {
    status = cudaOccupancyMaxActiveClusters(&count, kernel, config.get());
  } else {
    int multiprocessors = 0;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, stream.device),
          "cudaDeviceGetAttribute");
    status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, static_cast<int>(grid.threads),
                                                           grid.shared_bytes);
    count *= multiprocessors;
  }
  if (status != cudaSuccess) {
    cudaGetLastError();
    count = 0;
  }
  answers.emplace(question, count);
  return count;
}

template <class... Parameters>
void launch(Stream stream, const Grid& grid, void (*kernel)(Parameters...),
            const std::type_identity_t<Parameters>&... arguments) {
  const OnDevice current(stream.device);
  const LaunchConfig config(stream, grid, kernel);
  check(cudaLaunchKernelEx(config.get(), kernel, arguments...), "cudaLaunchKernelEx");
}

}  // namespace mpfast::cuda
