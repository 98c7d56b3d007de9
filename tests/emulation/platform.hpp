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

enum class Scope { warp, pair, block, cluster, condition };

// Where the running fiber stands; changed whenever another fiber runs.
extern thread_local Index thread_index;
extern thread_local Index block_index;
extern thread_local Index block_size;
extern thread_local Index grid_size;

void wait(Scope scope);
// Until the condition, which other fibers bring about, holds.
void wait_until(const std::function<bool()>& condition);
void* shared_memory(unsigned rank_in_cluster);
unsigned rank_in_cluster();
// 0 and 1 in turn, for each thread.
unsigned next_exchange();
// 8 bytes that lane `lane` of this warp offers the others.
void* exchange_slot(unsigned generation, unsigned lane);

// Asynchronous copies of the running fiber take effect when it waits for them, not before. They come in groups.
void copy_later(void* to, const void* from, std::size_t bytes);
void end_group_of_copies();
void finish_copies_but(unsigned groups);

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

inline void cluster_sync(int size) { emulation::wait(size > 1 ? emulation::Scope::cluster : emulation::Scope::block); }

inline void pair_sync() { emulation::wait(emulation::Scope::pair); }

// `left`: bytes of the phase that have not arrived. `state`: twice the number of phases that are complete, and one if
// the bytes of the next are known.
struct Arrivals {
  std::int32_t left;
  std::uint32_t state;

  void end_phase_if_complete() {
    if (state % 2 == 1 && left == 0) ++state;
  }
};

inline void start_arrivals(Arrivals* arrivals) { *arrivals = {0, 0}; }

inline void expect_arrivals(Arrivals* arrivals, int bytes, int size) {
  if (size == 1) return;
  ++arrivals->state;
  arrivals->left += bytes;
  arrivals->end_phase_if_complete();
}

template <class T>
T* in_block(T* p, int rank) {
  const auto offset = reinterpret_cast<char*>(p) - shared_memory<char>();
  return reinterpret_cast<T*>(static_cast<char*>(emulation::shared_memory(static_cast<unsigned>(rank))) + offset);
}

template <class T>
void send(T* to, T value, Arrivals* arrivals, int rank, int size) {
  *in_block(to, rank) = value;
  if (size == 1) return;
  Arrivals& there = *in_block(arrivals, rank);
  there.left -= static_cast<std::int32_t>(sizeof(T));
  there.end_phase_if_complete();
}

inline void wait_for_arrivals(const Arrivals* arrivals, unsigned phase, int size) {
  if (size == 1) return __syncthreads();
  emulation::wait_until([=] { return arrivals->state / 2 % 2 != phase % 2; });
}

template <class T>
void copy_word_async(T* shared, const T* global) {
  emulation::copy_later(shared, global, sizeof(T));
}

template <int kBytes>
void copy_async(void* shared, const void* global) {
  emulation::copy_later(shared, global, kBytes);
}

inline void commit_copies() { emulation::end_group_of_copies(); }

template <int kPending>
void wait_for_copies() {
  emulation::finish_copies_but(kPending);
}

inline void wait_for_copies() {
  commit_copies();
  wait_for_copies<0>();
}

// Reads a byte, so that a prefetch of what is not there is found; a device would not mind.
inline void prefetch_to_l2(const void* global) { static_cast<void>(*static_cast<const volatile char*>(global)); }

// To the nearest, ties to even; of finite numbers.
inline std::uint32_t bfloat16_pair(float low, float high) {
  const auto rounded = [](float value) {
    const auto bits = __builtin_bit_cast(std::uint32_t, value);
    return (bits + 0x7fffU + (bits >> 16 & 1U)) >> 16;
  };
  return rounded(low) | rounded(high) << 16;
}

template <bool kTransposed>
void load_matrices(std::uint32_t (&words)[4], const void* line) {
  const unsigned generation = emulation::next_exchange();
  const unsigned lane = threadIdx.x % 32;
  std::memcpy(emulation::exchange_slot(generation, lane), &line, sizeof(line));
  __syncwarp();
  const auto entry = [&](unsigned matrix, unsigned row, unsigned column) {
    const std::uint16_t* from = nullptr;
    std::memcpy(&from, emulation::exchange_slot(generation, 8 * matrix + row), sizeof(from));
    return std::uint32_t{from[column]};
  };
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4;
    const unsigned column = lane % 4 * 2;
    words[i] = kTransposed ? entry(i, column, row) | entry(i, column + 1, row) << 16
                           : entry(i, row, column) | entry(i, row, column + 1) << 16;
  }
}

inline void add_matrix_product(float (&sum)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  const unsigned lane = threadIdx.x % 32;
  std::uint32_t words[32][6];
  for (unsigned pair = 0; pair < 3; ++pair) {
    const unsigned generation = emulation::next_exchange();
    std::memcpy(emulation::exchange_slot(generation, lane), pair < 2 ? &a[2 * pair] : &b[0], 8);
    __syncwarp();
    for (unsigned i = 0; i < 32; ++i) std::memcpy(&words[i][2 * pair], emulation::exchange_slot(generation, i), 8);
  }
  const auto half = [](std::uint32_t word, unsigned k) {
    return __builtin_bit_cast(float, k % 2 == 0 ? word << 16 : word & 0xffff0000U);
  };
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4;
    const unsigned column = lane % 4 * 2 + i % 2;
    double total = static_cast<double>(sum[i]);
    for (unsigned k = 0; k < 16; ++k) {
      const float entry = half(words[row * 4 + k % 8 / 2][k / 8 * 2 + i / 2], k);
      const float other = half(words[column * 4 + k % 8 / 2][4 + k / 8], k);
      total += static_cast<double>(entry) * static_cast<double>(other);
    }
    sum[i] = static_cast<float>(total);
  }
}

// A device with few multiprocessors.
template <class... Parameters>
index_t places(Stream, const Grid& grid, void (*)(Parameters...)) {
  return grid.cluster <= emulation::room_for_clusters() ? 3 : 0;
}

template <class... Parameters>
void launch(Stream, const Grid& grid, void (*kernel)(Parameters...),
            const std::type_identity_t<Parameters>&... arguments) {
  emulation::run(grid, [&] { kernel(arguments...); });
}

}  // namespace mpfast::cuda
