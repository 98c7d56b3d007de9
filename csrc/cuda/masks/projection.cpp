#include "cuda/masks/projection.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "cuda/masks/mask_kernels.hpp"
#include "cuda/masks/projection_kernels.hpp"
#include "masks/projection.hpp"

namespace mpfast::cuda {

namespace {

std::vector<double> normalized(const double* moments, index_t groups, int m) {
  const index_t size = static_cast<index_t>(m) * m;
  std::vector<double> result(moments, moments + groups * size);
  for (index_t g = 0; g < groups; ++g) {
    double* block = result.data() + g * size;
    double largest = 0;
    for (int i = 0; i < m; ++i) largest = std::max(largest, std::abs(block[i * (m + 1)]));
    const double factor = masks::unit_factor(largest);
    for (index_t i = 0; i < size; ++i) block[i] *= factor;
  }
  return result;
}

}  // namespace

std::optional<NonFinite> project_groups(Stream stream, const ProjectionProblem& problem) {
  const MatrixView& w = problem.matrix.entries;
  if (problem.m < 1 || problem.m > masks::kLargestTable || problem.n < 1 || problem.n > problem.m) {
    throw std::invalid_argument("need 1 <= n <= m <= 16");
  }
  if (w.cols % problem.m != 0) throw std::invalid_argument("m must divide the number of columns");
  const std::vector<double> host = normalized(problem.moments, w.cols / problem.m, problem.m);
  const DeviceBuffer<double> moments(stream, static_cast<index_t>(host.size()));
  copy(stream, moments.get(), host.data(), host.size() * sizeof(double));
  const DeviceBuffer<std::uint32_t> nonfinite(stream, 1);
  const std::uint32_t none = 0;
  copy(stream, nonfinite.get(), &none, sizeof none);
  synchronize(stream);  // before `none` ends
  write_projection(stream, {w, problem.matrix.keep, moments.get(), problem.source, problem.prior, problem.n, problem.m},
                   nonfinite.get());
  if (to_host(stream, nonfinite.get(), 1)[0] != 0) return describe_nonfinite(stream, {&problem.matrix, 1});
  return std::nullopt;
}

}  // namespace mpfast::cuda
