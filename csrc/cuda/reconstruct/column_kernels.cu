#include <cmath>

#include "cuda/machine/platform.hpp"
#include "cuda/masks/group_search.hpp"
#include "cuda/reconstruct/column_kernels.hpp"
#include "reconstruct/rounding.hpp"

namespace mpfast::cuda {

namespace {

using masks::kLargestTable;
using reconstruct::ColumnChoice;
using reconstruct::ColumnRange;
using reconstruct::ColumnsProblem;

constexpr unsigned kThreads = kSearchThreads;
constexpr int kLanes = 8;  // threads of a row, side by side in a warp
constexpr int kRows = static_cast<int>(kThreads) / kLanes;
constexpr int kColumns = static_cast<int>(reconstruct::kLeafColumns);
// The four rows of a warp lie in different banks of shared memory.
constexpr int kPitch = kColumns + kLanes;
// Up to here the threads of a row look at every set themselves; for longer groups the block searches, row by row.
constexpr int kLargestOfRow = 8;

struct Shared {
  double u[kRows][kLargestTable];
  double prior[kLargestTable];  // zero
  SearchMemory search;
  float factor[kColumns][kColumns];
  float weights[kRows][kPitch];
  float scale[kRows];
  float zero[kRows];
  std::uint8_t keep[kRows][kColumns];
};
// The least that devices of compute capability 8.x let a block have.
static_assert(sizeof(Shared) <= std::size_t{99} << 10);

__device__ float top_of(const ColumnsProblem& problem) { return static_cast<float>((1 << problem.bits) - 1); }

__device__ index_t first_row_of_block() { return static_cast<index_t>(blockIdx.x) * kRows; }

// A thread's place in the block's tile, and the row of the matrix that it works on.
struct Place {
  int row;
  int lane;
  index_t global_row;
};

__device__ Place own_place() {
  const auto thread = static_cast<int>(threadIdx.x);
  return {thread / kLanes, thread % kLanes, first_row_of_block() + thread / kLanes};
}

// function(row of the tile, column of the leaf) for all entries, neighbours by neighbours.
template <class Function>
__device__ void for_each_entry(int columns, const Function& function) {
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kColumns; i += static_cast<int>(kThreads)) {
    if (i % kColumns < columns) function(i / kColumns, i % kColumns);
  }
}

// Rows beyond the matrix are zero and kept.
__device__ void load(const LeafTask& task, int columns, Shared& s) {
  const ColumnsProblem& problem = task.problem;
  const index_t first_row = first_row_of_block();
  const float* const factor = problem.factor + task.leaf.first * problem.cols + task.leaf.first;
  for (int i = static_cast<int>(threadIdx.x); i < columns * kColumns; i += static_cast<int>(kThreads)) {
    const int j = i / kColumns;
    const int k = i % kColumns;
    if (j <= k && k < columns) copy_word_async(&s.factor[j][k], factor + j * problem.cols + k);
  }
  for_each_entry(columns, [&](int r, int j) {
    const index_t row = first_row + r;
    const bool inside = row < problem.rows;
    const index_t at = row * problem.cols + task.leaf.first + j;
    s.weights[r][j] = inside ? problem.weights[at] : 0;
    std::uint8_t keep = 1;
    if (inside && problem.choice == ColumnChoice::given) keep = problem.keep[at];
    if (inside && problem.choice == ColumnChoice::smallest) keep = task.chosen[row * columns + j];
    s.keep[r][j] = keep;
  });
  if (threadIdx.x < kLargestTable) s.prior[threadIdx.x] = 0;
  wait_for_copies();
  __syncthreads();
}

__device__ void write(const LeafTask& task, int columns, const Shared& s) {
  const ColumnsProblem& problem = task.problem;
  const index_t first_row = first_row_of_block();
  for_each_entry(columns, [&](int r, int j) {
    const index_t row = first_row + r;
    if (row >= problem.rows) return;
    const index_t at = row * problem.cols + task.leaf.first + j;
    problem.weights[at] = s.weights[r][j];
    if (problem.choice != ColumnChoice::given) problem.keep[at] = s.keep[r][j];
  });
}

// A group of this thread's row with its largest weight near 1.
__device__ void read_group(int first, int m, const Place& place, Shared& s) {
  double largest = 0;
  for (int j = 0; j < m; ++j) {
    const double magnitude = std::fabs(s.weights[place.row][first + j]);
    largest = magnitude > largest ? magnitude : largest;
  }
  const double factor = masks::unit_factor(largest);
  for (int j = place.lane; j < m; j += kLanes) s.u[place.row][j] = s.weights[place.row][first + j] * factor;
  __syncwarp();
}

// The d slots to drop, every set having been looked at by the threads of the row.
__device__ unsigned search_in_row(const masks::Group& group, int d, int lane) {
  unsigned dropped = 0;
  const bool free = group.free_slots(d, dropped);
  BestSet best;
  for (unsigned set = static_cast<unsigned>(lane); !free && set < 1U << group.m; set += kLanes) {
    if (masks::bit_count(set) == d) best.see(group.cost(set), set);
  }
  for (unsigned step = kLanes / 2; step > 0; step /= 2) {
    const double cost = __shfl_xor_sync(~0U, best.cost, step);
    const unsigned set = __shfl_xor_sync(~0U, best.set, step);
    const unsigned any = __shfl_xor_sync(~0U, best.any ? 1U : 0U, step);
    if (any != 0) best.see(cost, set);
  }
  return free ? dropped : best.set;
}

// Which of the m columns from `first` on stay. kSecond: of the search by the block; 0: rows search for themselves.
template <int kSecond>
__device__ void choose(const LeafTask& task, int first, Shared& s) {
  const ColumnsProblem& problem = task.problem;
  const Place place = own_place();
  const int m = problem.m;
  const int d = m - problem.n;
  const double* const cost = task.costs + (task.leaf.first + first) * m;
  read_group(first, m, place, s);
  if constexpr (kSecond == 0) {
    const unsigned dropped = search_in_row({s.u[place.row], cost, s.prior, m}, d, place.lane);
    for (int j = place.lane; j < m; j += kLanes) s.keep[place.row][first + j] = (dropped >> j & 1U) != 0 ? 0 : 1;
    __syncwarp();
  } else {
    __syncthreads();
    const unsigned d1 = set_of_rank(threadIdx.x, m - kSecond);
    const index_t left = problem.rows - first_row_of_block();
    for (int r = 0; r < (left < kRows ? left : kRows); ++r) {
      const masks::Group group{s.u[r], cost, s.prior, m};
      unsigned dropped = 0;
      if (!group.free_slots(d, dropped)) dropped = cheapest_set<kSecond>(group, d, d1, s.search);
      const auto j = static_cast<int>(threadIdx.x);
      if (j < m) s.keep[r][first + j] = (dropped >> j & 1U) != 0 ? 0 : 1;
      __syncthreads();
    }
  }
}

// The grid that column `first` of the leaf belongs to, made if the whole of it lies in the leaf and begins there.
// Returns where it ends in the leaf.
__device__ int take_grid(const LeafTask& task, int first, Shared& s) {
  const ColumnsProblem& problem = task.problem;
  const Place place = own_place();
  const index_t begin = (task.leaf.first + first) / problem.group * problem.group;
  const index_t end = begin + problem.group < problem.cols ? begin + problem.group : problem.cols;
  const index_t groups = (problem.cols + problem.group - 1) / problem.group;
  const index_t at = place.global_row * groups + begin / problem.group;
  const bool inside = place.global_row < problem.rows;
  if (end <= task.leaf.last && begin == task.leaf.first + first) {
    float low = 0;
    float high = 0;
    for (int j = first + place.lane; j < static_cast<int>(end - task.leaf.first); j += kLanes) {
      const float w = s.weights[place.row][j];
      low = w < low ? w : low;
      high = w > high ? w : high;
    }
    for (unsigned step = kLanes / 2; step > 0; step /= 2) {
      const float other_low = __shfl_xor_sync(~0U, low, step);
      const float other_high = __shfl_xor_sync(~0U, high, step);
      low = other_low < low ? other_low : low;
      high = other_high > high ? other_high : high;
    }
    if (place.lane == 0) {
      const reconstruct::Grid grid = reconstruct::grid_over(low, high, top_of(problem), problem.symmetric);
      s.scale[place.row] = grid.scale;
      s.zero[place.row] = grid.zero;
      if (inside) problem.scale[at] = grid.scale;
      if (inside) problem.zero[at] = grid.zero;
    }
  } else if (place.lane == 0) {
    s.scale[place.row] = inside ? problem.scale[at] : 1;
    s.zero[place.row] = inside ? problem.zero[at] : 0;
  }
  __syncwarp();
  return static_cast<int>((end < task.leaf.last ? end : task.leaf.last) - task.leaf.first);
}

// What becomes of a weight.
__device__ float settled(const ColumnsProblem& problem, float before, const Place& place, int j, const Shared& s) {
  if (s.keep[place.row][j] == 0) return 0;
  if (problem.bits == 0) return before;
  return reconstruct::rounded(before, s.scale[place.row], s.zero[place.row], top_of(problem));
}

// Columns [first, last) of the leaf, eight at a time: these one by one, each thread of a row having one of them, and
// then what all eight change further right, where every weight is read and written once.
__device__ void sweep(const LeafTask& task, int first, int last, int columns, Shared& s) {
  const ColumnsProblem& problem = task.problem;
  const Place place = own_place();
  float* const weights = s.weights[place.row];
  for (int strip = first; strip < last; strip += kLanes) {
    const int end = strip + kLanes < last ? strip + kLanes : last;
    const int own = strip + place.lane;
    float errors[kLanes];
    float own_error = 0;
    float own_weight = 0;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      errors[i] = 0;
      const int j = strip + i;
      if (j >= end) continue;
      const float before = weights[j];
      const float after = settled(problem, before, place, j, s);
      errors[i] = (before - after) / s.factor[j][j];
      if (own == j) {
        own_weight = after;
        own_error = errors[i];
      }
      if (own > j && own < end) weights[own] = std::fma(s.factor[j][own], -errors[i], weights[own]);
      __syncwarp();
    }
    for (int k = end + place.lane; k < columns; k += kLanes) {
      float w = weights[k];
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        if (strip + i < end) w = std::fma(s.factor[strip + i][k], -errors[i], w);
      }
      weights[k] = w;
    }
    if (own < end) weights[own] = own_weight;
    if (own < end && place.global_row < problem.rows) {
      task.errors[place.global_row * problem.cols + task.leaf.first + own] = own_error;
    }
    __syncwarp();
  }
}

// Shared memory has room for two blocks on a multiprocessor at most.
template <int kSecond>
__global__ void __launch_bounds__(kThreads, 2) leaf_kernel(LeafTask task) {
  Shared& s = *shared_memory<Shared>();
  const auto columns = static_cast<int>(task.leaf.last - task.leaf.first);
  const bool by_groups = task.problem.choice == ColumnChoice::groups;
  load(task, columns, s);
  for (int first = 0; first < columns;) {
    int last = by_groups ? first + task.problem.m : columns;
    if (by_groups) choose<kSecond>(task, first, s);
    if (task.problem.bits != 0) {
      const int end = take_grid(task, first, s);
      last = end < last ? end : last;
    }
    sweep(task, first, last, columns, s);
    first = last;
  }
  __syncthreads();
  write(task, columns, s);
}

__global__ void score_kernel(ColumnsProblem problem, ColumnRange leaf, float* scores) {
  const index_t width = leaf.last - leaf.first;
  const index_t i = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= problem.rows * width) return;
  const index_t column = leaf.first + i % width;
  scores[i] = problem.weights[i / width * problem.cols + column] / problem.factor[column * problem.cols + column];
}

// A warp for each row.
__global__ void grid_kernel(ColumnsProblem problem, ColumnRange whole) {
  constexpr unsigned kWarp = 32;
  const index_t row = (static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  const index_t lane = threadIdx.x % kWarp;
  float low = 0;
  float high = 0;
  for (index_t j = whole.first + lane; row < problem.rows && j < whole.last; j += kWarp) {
    const float w = problem.weights[row * problem.cols + j];
    low = w < low ? w : low;
    high = w > high ? w : high;
  }
  for (unsigned step = kWarp / 2; step > 0; step /= 2) {
    const float other_low = __shfl_xor_sync(~0U, low, step);
    const float other_high = __shfl_xor_sync(~0U, high, step);
    low = other_low < low ? other_low : low;
    high = other_high > high ? other_high : high;
  }
  if (lane != 0 || row >= problem.rows) return;
  const reconstruct::Grid grid = reconstruct::grid_over(low, high, top_of(problem), problem.symmetric);
  const index_t at = row * ((problem.cols + problem.group - 1) / problem.group) + whole.first / problem.group;
  problem.scale[at] = grid.scale;
  problem.zero[at] = grid.zero;
}

}  // namespace

void settle_leaf(Stream stream, const LeafTask& task) {
  const Grid grid{.x = static_cast<unsigned>(ceil_div(task.problem.rows, kRows)),
                  .threads = kThreads,
                  .shared_bytes = sizeof(Shared)};
  if (task.problem.choice != ColumnChoice::groups || task.problem.m <= kLargestOfRow) {
    return launch(stream, grid, &leaf_kernel<0>, task);
  }
  constexpr int kLeast = (kLargestOfRow + 2) / 2;
  with_second_half<kLeast>(task.problem.m, [&]<int kSecond>() { launch(stream, grid, &leaf_kernel<kSecond>, task); });
}

void score_leaf(Stream stream, const ColumnsProblem& problem, const ColumnRange& leaf, float* scores) {
  const Grid grid{.x = static_cast<unsigned>(ceil_div(problem.rows * leaf.count(), kThreads)), .threads = kThreads};
  launch(stream, grid, &score_kernel, problem, leaf, scores);
}

void set_grids(Stream stream, const ColumnsProblem& problem, const ColumnRange& whole) {
  constexpr index_t kRowsOfBlock = kThreads / 32;
  const Grid grid{.x = static_cast<unsigned>(ceil_div(problem.rows, kRowsOfBlock)), .threads = kThreads};
  launch(stream, grid, &grid_kernel, problem, whole);
}

}  // namespace mpfast::cuda
