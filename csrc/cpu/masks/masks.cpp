#include "cpu/masks/masks.hpp"

#include <stdexcept>
#include <vector>

#include "cpu/machine/dispatch.hpp"
#include "cpu/masks/cut_search.hpp"
#include "cpu/masks/entry_blocks.hpp"
#include "cpu/masks/mask_kernels.hpp"
#include "masks/n_m.hpp"

namespace mpfast::cpu {

const MaskKernels& active_mask_kernels(DType dtype) {
  return *for_active_isa([&]<class Isa>() { return &mask_kernels<Isa>(dtype); });
}

std::optional<NonFinite> prune_smallest(Team& team, std::span<const ScoredMatrix> matrices, index_t pruned) {
  if (matrices.empty()) return std::nullopt;
  KeyKind keys = key_kind(matrices[0].entries.dtype, matrices[0].scale);
  index_t total = 0;
  for (const ScoredMatrix& matrix : matrices) {
    keys = keys & key_kind(matrix.entries.dtype, matrix.scale);
    total += matrix.entries.rows * matrix.entries.cols;
  }
  CutSearch search(total, pruned, keys);
  while (!search.done()) {
    if (const auto found = search.count(team, matrices)) return found;
    search.narrow();
  }
  search.write(team, matrices);
  return std::nullopt;
}

std::optional<NonFinite> keep_largest_of_groups(Team& team, std::span<const ScoredMatrix> matrices, int n, int m) {
  if (m < 1 || m > masks::kLargestGroup || n < 1 || n > m) throw std::invalid_argument("need 1 <= n <= m <= 64");
  for (const ScoredMatrix& matrix : matrices) {
    if (matrix.entries.cols % m != 0) throw std::invalid_argument("m must divide the number of columns");
  }
  const std::vector<ScoredMatrix> flat = flattened(matrices);
  const std::vector<Block> blocks = cut_into_blocks(flat, m);
  std::vector<FirstBad> bad(static_cast<std::size_t>(team.size()));
  team.parallel_for(static_cast<index_t>(blocks.size()), [&](index_t b, int worker) {
    const Block& block = blocks[static_cast<std::size_t>(b)];
    const ScoredMatrix& matrix = flat[static_cast<std::size_t>(block.matrix)];
    const auto kernel = active_mask_kernels(matrix.entries.dtype).keep_largest;
    bool finite = true;
    for_each_run(matrix.entries, block, m, [&](const void* entries, index_t count, index_t flat_index) {
      finite &= kernel(entries, count, n, m, matrix.keep + flat_index);
    });
    if (!finite) bad[static_cast<std::size_t>(worker)].see(block.matrix);
  });
  if (first_bad(bad) >= 0) return describe_nonfinite(team, flat, first_bad(bad));
  return std::nullopt;
}

}  // namespace mpfast::cpu
