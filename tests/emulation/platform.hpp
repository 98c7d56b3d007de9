// A CUDA device acted out on the host, for tests: kernels compile as C++ and run thread by thread.
//
// Each CUDA thread is a fiber with a stack of its own; one operating-system thread runs all fibers of a cluster in
// turn, and the clusters of a grid one after the other. A fiber runs until it ends or waits at a barrier. Barriers of a
// warp, a block and a cluster are real: one that some thread never reaches is reported instead of hanging, and between
// two barriers the order of the threads changes from round to round, so that results that depend on it show. Shared
// memory is exactly as large as the launch asked for and starts as NaN; under AddressSanitizer, accesses beyond it are
// found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#include "cuda/machine/grid.hpp"
#include "cuda/machine/runtime.hpp"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

namespace mpfast::cuda::emulation {

struct Index {
  unsigned x = 0;
  unsigned y = 0;
};

enum class Scope { warp, block, cluster };

// Where the running fiber stands; changed whenever another fiber runs.
extern thread_local Index thread_index;
extern thread_local Index block_index;
extern thread_local Index block_size;
extern thread_local Index grid_size;

void wait(Scope scope);
void* shared_memory(unsigned rank_in_cluster);
unsigned rank_in_cluster();
// 0 and 1 in turn, for each thread.
unsigned next_exchange();
// 8 bytes that lane `lane` of this warp offers the others.
void* exchange_slot(unsigned generation, unsigned lane);

// Asynchronous copies of the running fiber take effect when it waits for them, not before.
void copy_later(void* to, const void* from, std::size_t bytes);
void finish_copies();

// Blocks that the acted device has room for in one cluster.
unsigned room_for_clusters();

// Runs `body` as every thread of the grid.
void run(const Grid& grid, const std::function<void()>& body);

}  // namespace mpfast::cuda::emulation

namespace mpfast::cuda {

inline thread_local emulation::Index& threadIdx = emulation::thread_index;
inline thread_local emulation::Index& blockIdx = emulation::block_index;
inline thread_local emulation::Index& blockDim = emulation::block_size;
inline thread_local emulation::Index& gridDim = emulation::grid_size;

inline void __syncthreads() { emulation::wait(emulation::Scope::block); }
inline void __syncwarp() { emulation::wait(emulation::Scope::warp); }

// One barrier is enough: a lane cannot be two exchanges ahead of another, and the slots alternate.
template <class T>
T __shfl_xor_sync(unsigned, T value, unsigned mask) {
  static_assert(sizeof(T) <= 8);
  const unsigned generation = emulation::next_exchange();
  std::memcpy(emulation::exchange_slot(generation, threadIdx.x % 32), &value, sizeof(T));
  __syncwarp();
  T other;
  std::memcpy(&other, emulation::exchange_slot(generation, (threadIdx.x % 32) ^ mask), sizeof(T));
  return other;
}

template <class T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}

template <class T>
T* shared_memory() {
  return static_cast<T*>(emulation::shared_memory(emulation::rank_in_cluster()));
}

inline void cluster_sync(unsigned size) {
  emulation::wait(size > 1 ? emulation::Scope::cluster : emulation::Scope::block);
}

template <class T>
T* shared_memory_of(T* p, unsigned rank) {
  const auto offset = reinterpret_cast<char*>(p) - shared_memory<char>();
  return reinterpret_cast<T*>(static_cast<char*>(emulation::shared_memory(rank)) + offset);
}

template <class T>
void copy_word_async(T* shared, const T* global) {
  emulation::copy_later(shared, global, sizeof(T));
}

inline void wait_for_copies() { emulation::finish_copies(); }

// Reads a byte, so that a prefetch of what is not there is found; a device would not mind.
inline void prefetch_to_l2(const void* global) { static_cast<void>(*static_cast<const volatile char*>(global)); }

template <class... Parameters>
bool cluster_fits(Stream, const Grid& grid, void (*)(Parameters...)) {
  return grid.cluster <= emulation::room_for_clusters();
}

template <class... Parameters>
void launch(Stream, const Grid& grid, void (*kernel)(Parameters...),
            const std::type_identity_t<Parameters>&... arguments) {
  emulation::run(grid, [&] { kernel(arguments...); });
}

}  // namespace mpfast::cuda
