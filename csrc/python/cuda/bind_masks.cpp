#include <cstdint>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "cuda/masks/masks.hpp"
#include "cuda/masks/projection.hpp"
#include "python/arguments.hpp"
#include "python/cuda/bindings.hpp"

namespace mpfast::python {

namespace {

// (matrix, count, row-major index of the first), or None when every entry is finite.
using NonFiniteReport = std::optional<std::tuple<index_t, index_t, index_t>>;

std::vector<cuda::ScoredMatrix> targets(const MatrixList<DeviceMatrix>& matrices, const std::vector<double>& scales,
                                        const std::vector<std::uintptr_t>& keep) {
  if (matrices.empty() || keep.size() != matrices.size() || scales.size() != matrices.size()) {
    throw std::invalid_argument("one scale and one mask are needed for each matrix");
  }
  std::vector<cuda::ScoredMatrix> result;
  for (std::size_t k = 0; k < matrices.size(); ++k) {
    const DeviceMatrix& w = matrices[k];
    check_not_empty(w.view());
    check_scale(scales[k]);
    if (keep[k] == 0) throw std::invalid_argument("a mask has no address");
    if (w.stream.device != matrices[0].get().stream.device)
      throw std::invalid_argument("matrices are on several devices");
    result.push_back({w.view(), scales[k], reinterpret_cast<std::uint8_t*>(keep[k])});
  }
  return result;
}

NonFiniteReport report(const std::optional<cuda::NonFinite>& found) {
  if (!found) return std::nullopt;
  return std::tuple(found->matrix, found->count, found->first);
}

NonFiniteReport prune_smallest(const MatrixList<DeviceMatrix>& matrices, const std::vector<double>& scales,
                               const std::vector<std::uintptr_t>& keep, index_t pruned) {
  const auto scored = targets(matrices, scales, keep);
  index_t entries = 0;
  for (const cuda::ScoredMatrix& matrix : scored) entries += matrix.entries.rows * matrix.entries.cols;
  if (pruned < 0 || pruned > entries)
    throw std::invalid_argument("pruned must lie between 0 and the number of entries");
  const InCore core;
  return report(cuda::prune_smallest(matrices[0].get().stream, scored, pruned));
}

NonFiniteReport keep_largest_of_groups(const MatrixList<DeviceMatrix>& matrices,
                                       const std::vector<std::uintptr_t>& keep, int n, int m) {
  const auto scored = targets(matrices, std::vector<double>(matrices.size(), 1.0), keep);
  const InCore core;
  return report(cuda::keep_largest_of_groups(matrices[0].get().stream, scored, n, m));
}

NonFiniteReport project_groups(const DeviceMatrix& matrix, const py::array_t<double, py::array::c_style>& moments,
                               std::uintptr_t source, double prior, std::uintptr_t keep, int n, int m) {
  const auto scored = targets({matrix}, {1.0}, {keep});
  const index_t cols = matrix.view().cols;
  check_moments(moments, cols, m, prior);
  const cuda::ProjectionProblem problem{
      scored[0], moments.data(), reinterpret_cast<const std::uint8_t*>(source), prior, n, m};
  const InCore core;
  return report(cuda::project_groups(matrix.stream, problem));
}

}  // namespace

void register_cuda_masks(py::module_& m) {
  m.def("prune_smallest", &prune_smallest, py::arg("matrices"), py::arg("scales"), py::arg("keep"), py::arg("pruned"),
        "As that of _core; `keep` holds the addresses of the masks on the device.");
  m.def("keep_largest_of_groups", &keep_largest_of_groups, py::arg("matrices"), py::arg("keep"), py::arg("n"),
        py::arg("m"), "As that of _core; `keep` holds the addresses of the masks on the device.");
  m.def("project_groups", &project_groups, py::arg("matrix"), py::arg("moments"), py::arg("source"), py::arg("prior"),
        py::arg("keep"), py::arg("n"), py::arg("m"),
        "As that of _core, for m <= 16; `source` (0: none) and `keep` are addresses of masks on the device.");
}

}  // namespace mpfast::python
