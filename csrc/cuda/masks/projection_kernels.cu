#include "core/dtype.hpp"
#include "cuda/machine/platform.hpp"
#include "cuda/masks/group_search.hpp"
#include "cuda/masks/projection_kernels.hpp"
#include "masks/projection.hpp"

namespace mpfast::cuda {

namespace {

using masks::Group;
using masks::kLargestTable;

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
  SearchMemory search;
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

// One group at a time for a block of threads, one D1 for each thread.
template <int kSecond>
__global__ void __launch_bounds__(kSearchThreads) project_kernel(ProjectionTask task, std::uint32_t* nonfinite) {
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
    if (!group.free_slots(d, dropped)) dropped = cheapest_set<kSecond>(group, d, d1, s.search);
    if (threadIdx.x < static_cast<unsigned>(task.m)) {
      task.keep[problem * task.m + threadIdx.x] = (dropped >> threadIdx.x & 1U) != 0 ? 0 : 1;
    }
  }
}

}  // namespace

void write_projection(Stream stream, const ProjectionTask& task, std::uint32_t* nonfinite) {
  const index_t problems = task.entries.rows * (task.entries.cols / task.m);
  const Grid grid{.x = static_cast<unsigned>(problems < kMostBlocks ? problems : kMostBlocks),
                  .threads = kSearchThreads,
                  .shared_bytes = sizeof(Shared)};
  with_second_half<1>(task.m, [&]<int kSecond>() { launch(stream, grid, &project_kernel<kSecond>, task, nonfinite); });
}

}  // namespace mpfast::cuda
