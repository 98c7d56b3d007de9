#include <algorithm>
#include <cstdint>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/machine/team.hpp"
#include "cpu/masks/cut_search.hpp"
#include "cpu/masks/masks.hpp"
#include "cpu/masks/projection.hpp"
#include "python/arguments.hpp"
#include "python/bindings.hpp"
#include "python/dtype_names.hpp"
#include "python/whole_class.hpp"

namespace mpfast::python {

namespace {

// (matrix, count, row-major index of the first), or None when every entry is finite.
using NonFiniteReport = std::optional<std::tuple<index_t, index_t, index_t>>;

std::vector<cpu::ScoredMatrix> targets(const MatrixList<Matrix>& matrices, const std::vector<double>& scales,
                                       std::vector<py::array>& keep) {
  if (keep.size() != matrices.size() || scales.size() != matrices.size()) {
    throw std::invalid_argument("one scale and one mask are needed for each matrix");
  }
  std::vector<cpu::ScoredMatrix> result;
  result.reserve(matrices.size());
  for (std::size_t k = 0; k < matrices.size(); ++k) {
    const MatrixView w = matrices[k].get().view();
    const bool is_bool = keep[k].dtype().kind() == 'b';
    if (!is_bool || keep[k].size() != w.rows * w.cols || (keep[k].flags() & py::array::c_style) == 0) {
      throw std::invalid_argument("a mask must be a contiguous bool array of the size of its matrix");
    }
    check_not_empty(w);
    check_scale(scales[k]);
    result.push_back({w, scales[k], static_cast<std::uint8_t*>(keep[k].mutable_data())});  // throws when read-only
  }
  return result;
}

// Starting threads that find nothing to do would cost more than a small mask.
int team_size(const std::vector<cpu::ScoredMatrix>& matrices, int threads) {
  constexpr index_t kEntriesPerThread = index_t{1} << 17;
  index_t entries = 0;
  for (const cpu::ScoredMatrix& matrix : matrices) entries += matrix.entries.rows * matrix.entries.cols;
  const index_t useful = entries / kEntriesPerThread + 1;
  return static_cast<int>(std::min<index_t>(cpu::resolve_threads(threads), useful));
}

NonFiniteReport report(const std::optional<cpu::NonFinite>& found) {
  if (!found) return std::nullopt;
  return std::tuple(found->matrix, found->count, found->first);
}

NonFiniteReport prune_smallest(const MatrixList<Matrix>& matrices, const std::vector<double>& scales,
                               std::vector<py::array> keep, index_t pruned, int threads) {
  const auto scored = targets(matrices, scales, keep);
  index_t entries = 0;
  for (const cpu::ScoredMatrix& matrix : scored) entries += matrix.entries.rows * matrix.entries.cols;
  if (pruned < 0 || pruned > entries)
    throw std::invalid_argument("pruned must lie between 0 and the number of entries");
  const InCore core;
  cpu::Team team(team_size(scored, threads), core.poll());
  return report(cpu::prune_smallest(team, scored, pruned));
}

// A search whose matrices come one at a time.
class CutSearch {
 public:
  CutSearch(index_t total, index_t pruned, const std::vector<std::pair<std::string, double>>& storage)
      : keys_(common_kind(storage)), search_(total, pruned, keys_) {}

  bool done() const { return search_.done(); }

  void narrow() {
    const InCore core;
    const std::lock_guard one_call_at_a_time(mutex_);
    search_.narrow();
  }

  NonFiniteReport count(const Matrix& matrix, double scale, int threads) {
    check(matrix, scale);
    const std::vector<cpu::ScoredMatrix> scored = {{matrix.view(), scale, nullptr}};
    const InCore core;
    const std::lock_guard one_call_at_a_time(mutex_);
    cpu::Team team(team_size(scored, threads), core.poll());
    return report(search_.count(team, scored));
  }

  void write(const Matrix& matrix, double scale, py::array keep, int threads) {
    check(matrix, scale);
    std::vector<py::array> masks = {std::move(keep)};
    const auto scored = targets({matrix}, {scale}, masks);
    const InCore core;
    const std::lock_guard one_call_at_a_time(mutex_);
    cpu::Team team(team_size(scored, threads), core.poll());
    search_.write(team, scored);
  }

 private:
  static cpu::KeyKind common_kind(const std::vector<std::pair<std::string, double>>& storage) {
    if (storage.empty()) throw std::invalid_argument("there is no matrix");
    cpu::KeyKind keys = cpu::key_kind(parse_dtype(storage[0].first), storage[0].second);
    for (const auto& [dtype, scale] : storage) {
      check_scale(scale);
      keys = keys & cpu::key_kind(parse_dtype(dtype), scale);
    }
    return keys;
  }

  // The matrix is one of those that the search was made for.
  void check(const Matrix& matrix, double scale) const {
    check_scale(scale);
    check_not_empty(matrix.view());
    const cpu::KeyKind both = keys_ & cpu::key_kind(matrix.view().dtype, scale);
    if (both.wide != keys_.wide || both.trailing_zeros != keys_.trailing_zeros) {
      throw std::invalid_argument("the search was made for matrices stored in another way");
    }
  }

  cpu::KeyKind keys_;
  cpu::CutSearch search_;
  std::mutex mutex_;
};

NonFiniteReport keep_largest_of_groups(const MatrixList<Matrix>& matrices, std::vector<py::array> keep, int n, int m,
                                       int threads) {
  const auto scored = targets(matrices, std::vector<double>(matrices.size(), 1.0), keep);
  const InCore core;
  cpu::Team team(team_size(scored, threads), core.poll());
  return report(cpu::keep_largest_of_groups(team, scored, n, m));
}

NonFiniteReport project_groups(const Matrix& matrix, const py::array_t<double, py::array::c_style>& moments,
                               const std::optional<py::array_t<bool, py::array::c_style>>& source, double prior,
                               py::array keep, int n, int m, int threads) {
  std::vector<py::array> masks = {std::move(keep)};
  const auto scored = targets({matrix}, {1.0}, masks);
  const index_t cols = matrix.view().cols;
  check_moments(moments, cols, m, prior);
  if (source && source->size() != matrix.view().rows * cols)
    throw std::invalid_argument("source has not the shape of W");
  const auto* source_bytes = source ? reinterpret_cast<const std::uint8_t*>(source->data()) : nullptr;
  const cpu::ProjectionProblem problem{scored[0], moments.data(), source_bytes, prior, n, m};
  const InCore core;
  cpu::Team team(cpu::resolve_threads(threads), core.poll());
  return report(cpu::project_groups(team, problem));
}

}  // namespace

void register_masks(py::module_& m) {
  m.def("prune_smallest", &prune_smallest, py::arg("matrices"), py::arg("scales"), py::arg("keep"), py::arg("pruned"),
        py::arg("threads"), "Masks without the `pruned` entries of smallest |w| * scale.");
  whole_class<CutSearch>(m, "CutSearch", "prune_smallest() for matrices that come one at a time.")
      .def(py::init<index_t, index_t, const std::vector<std::pair<std::string, double>>&>(), py::arg("total"),
           py::arg("pruned"), py::arg("storage"),
           "For the `pruned` smallest of `total` entries; `storage`: type and scale of every matrix.")
      .def_property_readonly("done", &CutSearch::done)
      .def("count", &CutSearch::count, py::arg("matrix"), py::arg("scale"), py::arg("threads"),
           "Count a matrix in this round: every one once, in any order.")
      .def("narrow", &CutSearch::narrow, "End a round.")
      .def("write", &CutSearch::write, py::arg("matrix"), py::arg("scale"), py::arg("keep"), py::arg("threads"),
           "Once done, the mask of the next matrix: every one once, in the order that breaks ties.");
  m.def("keep_largest_of_groups", &keep_largest_of_groups, py::arg("matrices"), py::arg("keep"), py::arg("n"),
        py::arg("m"), py::arg("threads"), "Masks of the n largest of every m consecutive entries of a row.");
  m.def("project_groups", &project_groups, py::arg("matrix"), py::arg("moments"), py::arg("source"), py::arg("prior"),
        py::arg("keep"), py::arg("n"), py::arg("m"), py::arg("threads"),
        "Mask of n of every m entries of a row that changes the output least, given second moments of the input.");
}

}  // namespace mpfast::python
