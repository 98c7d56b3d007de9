#include <cmath>
#include <limits>

#include "core/dtype.hpp"
#include "cuda/machine/platform.hpp"
#include "cuda/masks/projection_kernels.hpp"
#include "masks/projection.hpp"

namespace mpfast::cuda {

namespace {

using masks::BestSet;
using masks::Group;
using masks::kLargestTable;
using masks::SecondHalf;
using masks::triangle;

constexpr unsigned kThreads = 256;  // one for each D1 of a half of eight slots
constexpr unsigned kMostBlocks = 4096;

struct Value {
  double number;
  bool finite;
};

__device__ Value value_of(const MatrixView& w, index_t row, index_t col) {
  return dispatch(w.dtype, [&]<DType dtype>() -> Value {
    const auto bits = static_cast<const typename Entry<dtype>::Bits*>(w.data)[row * w.row_stride + col * w.col_stride];
    const bool finite = (bits & Entry<dtype>::kExponent) != Entry<dtype>::kExponent;
    return {finite ? Entry<dtype>::widen(bits) : 0.0, finite};
  });
}

// What the threads of a block share of the group they work on.
struct Shared {
  double u[kLargestTable];
  double prior[kLargestTable];
  double row_sums[kLargestTable];
  double best_cost[kThreads];
  unsigned best_set[kThreads];
  float a[masks::kTriangle];
  float second[1 << kLargestTable / 2];
  float least[kThreads];
};

// The group's weights, normalised, and its prior. Every thread calls it; returns whether all weights are finite.
__device__ bool load_group(const ProjectionTask& task, index_t problem, Shared& s) {
  const auto t = static_cast<int>(threadIdx.x);
  const index_t groups = task.entries.cols / task.m;
  const index_t row = problem / groups;
  const index_t first = problem % groups * task.m;
  Value mine{0, true};
  if (t < task.m) {
    mine = value_of(task.entries, row, first + t);
    s.u[t] = mine.number;
    s.prior[t] = 0;
  }
  __syncthreads();
  double largest = 0;
  for (int i = 0; i < task.m; ++i) {
    const double magnitude = s.u[i] < 0 ? -s.u[i] : s.u[i];
    largest = magnitude > largest ? magnitude : largest;
  }
  __syncthreads();
  if (t < task.m) s.u[t] *= masks::unit_factor(largest);
  __syncthreads();
  if (task.source != nullptr && task.prior > 0) {
    const double* moment = task.moments + problem % groups * task.m * task.m;
    if (t < task.m) {
      double sum = 0;
      for (int j = 0; j < task.m; ++j) sum += moment[t * task.m + j] * s.u[j];
      s.row_sums[t] = sum;
    }
    __syncthreads();
    double all = 0;
    double trace = 0;
    for (int i = 0; i < task.m; ++i) {
      trace += s.u[i] * (moment[i * task.m + i] * s.u[i]);
      all += s.u[i] * s.row_sums[i];
    }
    const double unit = masks::mean_cost(all, trace, task.m, task.m - task.n);
    if (t < task.m && task.source[row * task.entries.cols + first + t] != 0) s.prior[t] = 2 * task.prior * unit;
    __syncthreads();
  }
  return mine.finite;
}

// A in float, off-diagonal entries doubled.
__device__ void form_a(const Group& group, Shared& s) {
  const int m = group.m;
  for (int k = static_cast<int>(threadIdx.x); k < m * m; k += static_cast<int>(kThreads)) {
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
__device__ float least_of_block(float value, Shared& s) {
  s.least[threadIdx.x] = value;
  for (unsigned step = kThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) s.least[threadIdx.x] = masks::smaller(s.least[threadIdx.x], s.least[threadIdx.x + step]);
  }
  __syncthreads();
  return s.least[0];
}

// The best of all threads' sets. Every thread calls it.
__device__ unsigned best_of_block(const BestSet& mine, Shared& s) {
  constexpr unsigned kNone = ~0U;
  s.best_cost[threadIdx.x] = mine.cost;
  s.best_set[threadIdx.x] = mine.any ? mine.set : kNone;
  for (unsigned step = kThreads / 2; step > 0; step /= 2) {
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
__device__ void see_second(const Shared& s, const Group& group, unsigned d1, int size, float base, float limit,
                           BestSet& best) {
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

// The set to drop. Every thread calls it and gets the answer.
template <int kSecond>
__device__ unsigned search(const Group& group, int d, unsigned d1, Shared& s) {
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

// One group at a time for a block of threads, one D1 for each thread.
template <int kSecond>
__global__ void __launch_bounds__(kThreads) project_kernel(ProjectionTask task, std::uint32_t* nonfinite) {
  Shared& s = *shared_memory<Shared>();
  const int d = task.m - task.n;
  const index_t groups = task.entries.cols / task.m;
  const unsigned d1 = set_of_rank(threadIdx.x, task.m - kSecond);
  for (index_t problem = blockIdx.x; problem < task.entries.rows * groups; problem += gridDim.x) {
    __syncthreads();  // the group before is done with
    if (!load_group(task, problem, s)) *nonfinite = 1;
    const double* moment = task.moments + problem % groups * task.m * task.m;
    const Group group{s.u, moment, s.prior, task.m};
    unsigned dropped = 0;
    if (!group.free_slots(d, dropped)) dropped = search<kSecond>(group, d, d1, s);
    if (threadIdx.x < static_cast<unsigned>(task.m)) {
      task.keep[problem * task.m + threadIdx.x] = (dropped >> threadIdx.x & 1U) != 0 ? 0 : 1;
    }
  }
}

template <int kSecond>
void launch_for_half(Stream stream, const ProjectionTask& task, std::uint32_t* nonfinite) {
  if constexpr (kSecond > 1) {
    if (task.m - task.m / 2 < kSecond) return launch_for_half<kSecond - 1>(stream, task, nonfinite);
  }
  const index_t problems = task.entries.rows * (task.entries.cols / task.m);
  const Grid grid{.x = static_cast<unsigned>(problems < kMostBlocks ? problems : kMostBlocks),
                  .threads = kThreads,
                  .shared_bytes = sizeof(Shared)};
  launch(stream, grid, &project_kernel<kSecond>, task, nonfinite);
}

}  // namespace

void write_projection(Stream stream, const ProjectionTask& task, std::uint32_t* nonfinite) {
  launch_for_half<kLargestTable / 2>(stream, task, nonfinite);
}

}  // namespace mpfast::cuda
