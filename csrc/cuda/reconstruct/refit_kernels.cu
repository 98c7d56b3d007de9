#include <cmath>

#include "cuda/machine/platform.hpp"
#include "cuda/reconstruct/refit_kernels.hpp"
#include "cuda/reconstruct/row_sums.hpp"

namespace mpfast::cuda {

namespace {

constexpr int kSide = 16;  // threads along a side of a small matrix
constexpr int kMost = static_cast<int>(kMostDirections);
constexpr int kInputs = 32;  // inputs whose rows of B are in shared memory at a time
constexpr unsigned kWarp = 32;

Grid a_block_for_each(index_t rows, std::size_t shared_bytes) {
  return {.x = static_cast<unsigned>(rows), .threads = kRowThreads, .shared_bytes = shared_bytes};
}

Grid a_thread_for_each(index_t entries) {
  return {.x = static_cast<unsigned>(ceil_div(entries, kRowThreads)), .threads = kRowThreads};
}

__device__ index_t thread_number() { return static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

__global__ void difference_kernel(RefitChunk chunk) {
  const index_t i = thread_number();
  if (i >= chunk.problem.rows * chunk.problem.cols) return;
  chunk.direction[i] =
      (chunk.problem.target[i] - chunk.problem.weights[i]) * chunk.problem.roots[i % chunk.problem.cols];
}

// Of up to kWidth rows and columns.
template <int kWidth>
struct SmallMatrices {
  float basis[kInputs][kWidth];  // rows of B, zero where the mask drops
  float matrix[kWidth][kWidth + 1];
};

// A = L L^T in place, lower triangle, by all threads of the block. A is base I and what is semidefinite: a pivot below
// the base is that and rounding.
template <int kWidth>
__device__ void cholesky(int n, float base, float (&a)[kWidth][kWidth + 1]) {
  const auto t = static_cast<int>(threadIdx.x);
  for (int k = 0; k < n; ++k) {
    if (t == 0) a[k][k] = std::sqrt(a[k][k] > base ? a[k][k] : base);
    __syncthreads();
    for (int i = k + 1 + t; i < n; i += static_cast<int>(kRowThreads)) a[i][k] /= a[k][k];
    __syncthreads();
    for (int i = k + 1 + t / kSide; i < n; i += kSide) {
      for (int j = k + 1 + t % kSide; j <= i; j += kSide) a[i][j] -= a[i][k] * a[j][k];
    }
    __syncthreads();
  }
}

// A thread has entries of the matrix that lie kSide apart in either direction.
template <int kWidth>
__global__ void __launch_bounds__(kRowThreads) preconditioner_kernel(RefitChunk chunk) {
  constexpr int kEach = kWidth / kSide;
  SmallMatrices<kWidth>& s = *shared_memory<SmallMatrices<kWidth>>();
  const RefitProblem& problem = chunk.problem;
  const auto width = static_cast<int>(problem.width);
  const auto t = static_cast<int>(threadIdx.x);
  const std::uint8_t* const keep = problem.keep + blockIdx.x * problem.cols;
  float sums[kEach][kEach] = {};
  for (index_t first = 0; first < problem.cols; first += kInputs) {
    __syncthreads();
    for (int i = t; i < kInputs * kWidth; i += static_cast<int>(kRowThreads)) {
      const index_t input = first + i / kWidth;
      const int k = i % kWidth;
      const bool counts = input < problem.cols && k < width && keep[input] != 0;
      s.basis[i / kWidth][k] = counts ? problem.basis[input * width + k] : 0;
    }
    __syncthreads();
#pragma unroll 4
    for (int i = 0; i < kInputs; ++i) {
      const float* const b = s.basis[i];
#pragma unroll
      for (int p = 0; p < kEach; ++p) {
#pragma unroll
        for (int q = 0; q < kEach; ++q) {
          sums[p][q] = std::fma(b[t / kSide + p * kSide], b[t % kSide + q * kSide], sums[p][q]);
        }
      }
    }
  }
#pragma unroll
  for (int p = 0; p < kEach; ++p) {
#pragma unroll
    for (int q = 0; q < kEach; ++q) {
      const int row = t / kSide + p * kSide;
      const int col = t % kSide + q * kSide;
      s.matrix[row][col] = sums[p][q] + (row == col ? problem.base : 0);
    }
  }
  __syncthreads();
  cholesky(width, problem.base, s.matrix);
  float* const small = chunk.small + blockIdx.x * static_cast<index_t>(width) * width;
  for (int i = t; i < width * width; i += static_cast<int>(kRowThreads)) small[i] = s.matrix[i % width][i / width];
}

__global__ void mask_kernel(RefitChunk chunk) {
  const index_t i = thread_number();
  if (i >= chunk.problem.rows * chunk.problem.cols) return;
  if (chunk.problem.keep[i] == 0) chunk.residual[i] = 0;
}

// A warp for each row. Forwards, a solved unknown is taken from all below it; backwards, those solved are summed.
__global__ void solve_kernel(RefitChunk chunk) {
  const auto width = static_cast<int>(chunk.problem.width);
  const auto lane = static_cast<int>(threadIdx.x);
  const float* const l = chunk.small + blockIdx.x * static_cast<index_t>(width) * width;
  float* const unknowns = chunk.coefficients + blockIdx.x * static_cast<index_t>(width);
  auto* const x = shared_memory<float>();
  for (int i = lane; i < width; i += static_cast<int>(kWarp)) x[i] = unknowns[i];
  __syncwarp();
  for (int k = 0; k < width; ++k) {
    const float solved = x[k] / l[k * width + k];
    __syncwarp();
    if (lane == 0) x[k] = solved;
    for (int i = k + 1 + lane; i < width; i += static_cast<int>(kWarp)) x[i] -= l[k * width + i] * solved;
    __syncwarp();
  }
  for (int k = width - 1; k >= 0; --k) {
    float sum = 0;
    for (int i = k + 1 + lane; i < width; i += static_cast<int>(kWarp)) sum += l[k * width + i] * x[i];
    for (unsigned step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0U, sum, step);
    if (lane == 0) x[k] = (x[k] - sum) / l[k * width + k];
    __syncwarp();
  }
  for (int i = lane; i < width; i += static_cast<int>(kWarp)) unknowns[i] = x[i];
}

__global__ void turn_kernel(RefitChunk chunk, bool first) {
  const RefitProblem& problem = chunk.problem;
  const index_t row = static_cast<index_t>(blockIdx.x) * problem.cols;
  double share_of_energy = 0;
  for_each_column(problem.cols, [&](index_t j) {
    const bool leads = problem.width > 0 && problem.keep[row + j] != 0;
    const float residual = chunk.residual[row + j];
    const float image = (residual - (leads ? chunk.image[row + j] : 0)) / problem.base;
    chunk.image[row + j] = image;
    share_of_energy += static_cast<double>(residual) * image;
  });
  const double energy = sum_of_block(share_of_energy, shared_memory<double>());
  const double before = first ? 0 : chunk.energy[blockIdx.x];
  const auto share = static_cast<float>(before > 0 ? energy / before : 0);
  for_each_column(problem.cols, [&](index_t j) {
    chunk.direction[row + j] = first ? chunk.image[row + j] : chunk.image[row + j] + share * chunk.direction[row + j];
  });
  __syncthreads();
  if (threadIdx.x == 0) chunk.energy[blockIdx.x] = energy;
}

__global__ void advance_kernel(RefitChunk chunk) {
  const RefitProblem& problem = chunk.problem;
  const index_t row = static_cast<index_t>(blockIdx.x) * problem.cols;
  double share = 0;
  for_each_column(problem.cols, [&](index_t j) {
    if (problem.keep[row + j] == 0) chunk.image[row + j] = 0;
    share += static_cast<double>(chunk.direction[row + j]) * chunk.image[row + j];
  });
  const double curvature = sum_of_block(share, shared_memory<double>());
  const auto length = static_cast<float>(curvature > 0 ? chunk.energy[blockIdx.x] / curvature : 0);
  for_each_column(problem.cols, [&](index_t j) {
    problem.weights[row + j] += length * chunk.direction[row + j] / problem.roots[j];
    chunk.residual[row + j] -= length * chunk.image[row + j];
  });
}

__global__ void transpose_kernel(index_t rows, index_t cols, const float* matrix, float* transposed) {
  const index_t i = thread_number();
  if (i < rows * cols) transposed[i] = matrix[i % rows * cols + i / rows];
}

__global__ void columns_kernel(index_t rows, index_t cols, const float* weights, const float* roots, float* scaled) {
  const index_t i = thread_number();
  if (i < rows * cols) scaled[i] = weights[i] * roots[i % cols];
}

__global__ void scales_kernel(ScaleProblem problem, const float* scaled, const float* image) {
  const index_t row = static_cast<index_t>(blockIdx.x) * problem.cols;
  auto* const memory = shared_memory<double>();
  double square = 0;
  double common = 0;
  double plain = 0;
  for_each_column(problem.cols, [&](index_t j) {
    const float v = scaled[row + j];
    const double undamped = image[row + j] - v * problem.shares[j];
    square += undamped * v;
    common += undamped * (problem.target[row + j] * problem.roots[j]);
    plain += static_cast<double>(v) * v;
  });
  square = sum_of_block(square, memory);
  common = sum_of_block(common, memory);
  plain = sum_of_block(plain, memory);
  const double scale = square > problem.rounding * plain ? common / square : 1;
  const double limited = scale < problem.least ? problem.least : scale > problem.largest ? problem.largest : scale;
  for_each_column(problem.cols, [&](index_t j) {
    if (problem.shares[j] < 1) problem.weights[row + j] *= static_cast<float>(limited);
  });
}

constexpr std::size_t kSumBytes = kRowThreads * sizeof(double);

}  // namespace

void set_difference(Stream stream, const RefitChunk& chunk) {
  launch(stream, a_thread_for_each(chunk.problem.rows * chunk.problem.cols), &difference_kernel, chunk);
}

void factor_preconditioners(Stream stream, const RefitChunk& chunk) {
  const auto with_width = [&]<int kWidth>() {
    const Grid grid = a_block_for_each(chunk.problem.rows, sizeof(SmallMatrices<kWidth>));
    launch(stream, grid, &preconditioner_kernel<kWidth>, chunk);
  };
  if (chunk.problem.width <= kMost / 2) return with_width.template operator()<kMost / 2>();
  with_width.template operator()<kMost>();
}

void mask_residual(Stream stream, const RefitChunk& chunk) {
  launch(stream, a_thread_for_each(chunk.problem.rows * chunk.problem.cols), &mask_kernel, chunk);
}

void solve_preconditioners(Stream stream, const RefitChunk& chunk) {
  const Grid grid{
      .x = static_cast<unsigned>(chunk.problem.rows), .threads = kWarp, .shared_bytes = kMost * sizeof(float)};
  launch(stream, grid, &solve_kernel, chunk);
}

void turn(Stream stream, const RefitChunk& chunk, bool first) {
  launch(stream, a_block_for_each(chunk.problem.rows, kSumBytes), &turn_kernel, chunk, first);
}

void advance(Stream stream, const RefitChunk& chunk) {
  launch(stream, a_block_for_each(chunk.problem.rows, kSumBytes), &advance_kernel, chunk);
}

void transpose(Stream stream, index_t rows, index_t cols, const float* matrix, float* transposed) {
  launch(stream, a_thread_for_each(rows * cols), &transpose_kernel, rows, cols, matrix, transposed);
}

void scale_columns(Stream stream, index_t rows, index_t cols, const float* weights, const float* roots, float* scaled) {
  launch(stream, a_thread_for_each(rows * cols), &columns_kernel, rows, cols, weights, roots, scaled);
}

void apply_scales(Stream stream, const ScaleProblem& problem, const float* scaled, const float* image) {
  launch(stream, a_block_for_each(problem.rows, kSumBytes), &scales_kernel, problem, scaled, image);
}

}  // namespace mpfast::cuda
