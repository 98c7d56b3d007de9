// The exact search of masks/projection.hpp on the device: a block of threads for one group, one D1 for each thread.
//
// Internal linkage: each file of kernels has its own copy.
#pragma once

#include <cmath>
#include <limits>

#include "cuda/machine/platform.hpp"
#include "masks/projection.hpp"

namespace mpfast::cuda {

constexpr unsigned kSearchThreads = 256;  // one for each D1 of a half of eight slots

// What the threads of a block share while they search.
struct SearchMemory {
  double best_cost[kSearchThreads];
  unsigned best_set[kSearchThreads];
  float a[masks::kTriangle];
  float second[1 << masks::kLargestTable / 2];
  float least[kSearchThreads];
};

namespace {

using masks::BestSet;
using masks::SecondHalf;
using masks::triangle;

// A in float, off-diagonal entries doubled.
__device__ void form_a(const masks::Group& group, SearchMemory& s) {
  const int m = group.m;
  for (int k = static_cast<int>(threadIdx.x); k < m * m; k += static_cast<int>(kSearchThreads)) {
    const int i = k / m;
    const int j = k % m;
    if (j < i) continue;
    const double product = group.u[i] * (group.moment[i * m + j] * group.u[j]);
    s.a[triangle(m, i, j)] = static_cast<float>(i == j ? product + group.prior[i] : 2 * product);
  }
}

// Cost of dropping a set of slots begin .. of one half.
__device__ float half_cost(const float* a, int m, int begin, unsigned set) {
  float total = 0;
  for (unsigned left = set; left != 0; left &= left - 1) {
    const int i = masks::first_slot(left);
    float sum = a[triangle(m, begin + i, begin + i)];
    for (unsigned rest = left & (left - 1); rest != 0; rest &= rest - 1) {
      sum += a[triangle(m, begin + i, begin + masks::first_slot(rest))];
    }
    total += sum;
  }
  return total;
}

// Subsets of a half in the order of their sizes, so that the threads of a warp do the same: the rank-th one.
__device__ unsigned set_of_rank(unsigned rank, int slots) {
  for (int size = 0; size <= slots; ++size) {
    for (unsigned set = 0; set < 1U << slots; ++set) {
      if (masks::bit_count(set) != size) continue;
      if (rank == 0) return set;
      --rank;
    }
  }
  return 0;
}

// The least of all threads' values. Every thread calls it.
__device__ float least_of_block(float value, SearchMemory& s) {
  s.least[threadIdx.x] = value;
  for (unsigned step = kSearchThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) s.least[threadIdx.x] = masks::smaller(s.least[threadIdx.x], s.least[threadIdx.x + step]);
  }
  __syncthreads();
  return s.least[0];
}

// The best of all threads' sets. Every thread calls it.
__device__ unsigned best_of_block(const BestSet& mine, SearchMemory& s) {
  constexpr unsigned kNone = ~0U;
  s.best_cost[threadIdx.x] = mine.cost;
  s.best_set[threadIdx.x] = mine.any ? mine.set : kNone;
  for (unsigned step = kSearchThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x >= step || s.best_set[threadIdx.x + step] == kNone) continue;
    BestSet both{s.best_cost[threadIdx.x], s.best_set[threadIdx.x], s.best_set[threadIdx.x] != kNone};
    both.see(s.best_cost[threadIdx.x + step], s.best_set[threadIdx.x + step]);
    s.best_cost[threadIdx.x] = both.cost;
    s.best_set[threadIdx.x] = both.set;
  }
  __syncthreads();
  return s.best_set[0];
}

// Shows every D1 + D2 that costs at most `limit`, with the costs of D1 and of the quarters of the second half.
template <int kSecond>
__device__ void see_second(const SearchMemory& s, const masks::Group& group, unsigned d1, int size, float base,
                           float limit, BestSet& best) {
  const int first = group.m - kSecond;
  for (unsigned d2 = 0; d2 < 1U << kSecond; ++d2) {
    if (masks::bit_count(d2) != size) continue;
    float cost = base + s.second[d2];
    for (unsigned i = d1; i != 0; i &= i - 1) {
      for (unsigned j = d2; j != 0; j &= j - 1) {
        cost += s.a[triangle(group.m, masks::first_slot(i), first + masks::first_slot(j))];
      }
    }
    if (!(cost <= limit)) continue;
    const unsigned set = d1 | d2 << first;
    best.see(group.cost(set), set);
  }
}

// The d slots to drop, d1 being set_of_rank(threadIdx.x, m - kSecond). Every thread calls it and gets the answer; the
// block waits between two calls.
template <int kSecond>
__device__ unsigned cheapest_set(const masks::Group& group, int d, unsigned d1, SearchMemory& s) {
  using Half = SecondHalf<kSecond>;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const int m = group.m;
  const int first = m - kSecond;
  form_a(group, s);
  __syncthreads();
  if (threadIdx.x < 1U << kSecond) s.second[threadIdx.x] = half_cost(s.a, m, first, threadIdx.x);
  __syncthreads();
  const int size = d - masks::bit_count(d1);
  const bool takes_part = threadIdx.x < 1U << first && size >= 0 && size <= kSecond;
  float base = 0;
  float least = kInfinity;
  if (takes_part) {
    base = half_cost(s.a, m, 0, d1);
    float cross[kSecond] = {};
    for (unsigned left = d1; left != 0; left &= left - 1) {
      const int at = triangle(m, masks::first_slot(left), first);
#pragma unroll
      for (int j = 0; j < kSecond; ++j) cross[j] += s.a[at + j];
    }
    float lower[1 << Half::kLower];
    float upper[1 << Half::kUpper];
    Half::template tabulate<Half::kLower>(cross, lower);
    Half::template tabulate<Half::kUpper>(cross + Half::kLower, upper);
    least = base + Half::least(size, static_cast<const float*>(s.second), static_cast<const float*>(lower),
                               static_cast<const float*>(upper), kInfinity);
  }
  const float best = least_of_block(least, s);
  // The sum of all |A_ij| is at most the square of that of the roots of the diagonal: A is positive semidefinite. Its
  // terms are added in another order than on the host, with at most twice as many roundings.
  float roots = 0;
  for (int i = 0; i < m; ++i) roots += std::sqrt(s.a[triangle(m, i, i)]);
  const float error = 2 * masks::kTableError * roots * roots;
  BestSet mine;
  if (takes_part && least <= best + 2 * error) see_second<kSecond>(s, group, d1, size, base, best + 4 * error, mine);
  return best_of_block(mine, s);
}

// function.operator()<kSecond>() for groups of m slots, whose second half has m - m / 2: kLeast or more.
template <int kLeast, int kSecond = masks::kLargestTable / 2, class Function>
void with_second_half(int m, const Function& function) {
  if constexpr (kSecond > kLeast) {
    if (m - m / 2 < kSecond) return with_second_half<kLeast, kSecond - 1>(m, function);
  }
  function.template operator()<kSecond>();
}

}  // namespace

}  // namespace mpfast::cuda
