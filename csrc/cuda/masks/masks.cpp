#include "cuda/masks/masks.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>
#include <vector>

#include "core/changed.hpp"
#include "cuda/masks/mask_kernels.hpp"
#include "masks/n_m.hpp"
#include "masks/select.hpp"

namespace mpfast::cuda {

namespace {

template <class T>
DeviceBuffer<T> zeros(Stream stream, index_t count) {
  DeviceBuffer<T> buffer(stream, count);
  const std::vector<T> host(static_cast<std::size_t>(count), T{});
  copy(stream, buffer.get(), host.data(), host.size() * sizeof(T));
  synchronize(stream);  // `host` ends here
  return buffer;
}

struct Cut {
  std::int64_t key = 0;     // everything below is pruned, everything above is kept
  index_t ties = 0;         // entries with this very key
  index_t pruned_ties = 0;  // how many of them are pruned
};

class Selection {
 public:
  Selection(Stream stream, std::span<const ScoredMatrix> matrices)
      : stream_(stream), matrices_(matrices), nonfinite_(zeros<std::uint32_t>(stream, 1)) {
    wide_ = std::any_of(matrices.begin(), matrices.end(),
                        [](const ScoredMatrix& matrix) { return needs_double(matrix.entries.dtype); });
  }

  // The key of the entry of rank `pruned` - 1; nothing when an entry is not finite.
  std::optional<Cut> find_cut(index_t pruned) {
    constexpr index_t kDigits = index_t{1} << kDigitBits;
    const int bits = wide_ ? masks::Score<std::int64_t>::kBits : masks::Score<std::int32_t>::kBits;
    index_t rank = std::max<index_t>(pruned, 1) - 1;  // among the keys that share the prefix
    index_t before = 0;
    KeyDigit digit{0, (bits - 1) / kDigitBits * kDigitBits};
    for (;; digit.shift -= kDigitBits) {
      const auto histogram = zeros<Counter>(stream_, kDigits);
      for (const ScoredMatrix& matrix : matrices_) {
        count_digits(stream_, matrix, wide_, digit, histogram.get(), nonfinite_.get());
      }
      if (to_host(stream_, nonfinite_.get(), 1)[0] != 0) return std::nullopt;
      const auto counts = to_host(stream_, histogram.get(), kDigits);
      std::int64_t d = 0;
      while (d < kDigits && static_cast<index_t>(counts[static_cast<std::size_t>(d)]) <= rank) {
        rank -= static_cast<index_t>(counts[static_cast<std::size_t>(d)]);
        before += static_cast<index_t>(counts[static_cast<std::size_t>(d)]);
        ++d;
      }
      if (d == kDigits) throw MatrixChanged();  // fewer keys with this prefix than the last pass counted
      digit.prefix |= d << digit.shift;
      if (digit.shift == 0) {
        return Cut{digit.prefix, static_cast<index_t>(counts[static_cast<std::size_t>(d)]), pruned - before};
      }
    }
  }

  void write(const Cut& cut) {
    // When all the ties go, there is nothing to share out.
    const bool partial = cut.pruned_ties < cut.ties;
    const std::int64_t first_kept = partial ? cut.key : cut.key + 1;
    index_t left = partial ? cut.pruned_ties : 0;
    for (const ScoredMatrix& matrix : matrices_) {
      const index_t chunks = mask_chunks(matrix.entries);
      const DeviceBuffer<std::uint32_t> ties(stream_, chunks);
      write_mask(stream_, matrix, wide_, first_kept, ties.get());
      if (left == 0) continue;
      // Ties were kept so far. They are pruned in order until the budget is used up.
      std::vector<std::uint32_t> pruned = to_host(stream_, ties.get(), chunks);
      for (std::uint32_t& here : pruned) {
        here = static_cast<std::uint32_t>(std::min<index_t>(here, left));
        left -= here;
      }
      copy(stream_, ties.get(), pruned.data(), pruned.size() * sizeof(std::uint32_t));
      prune_ties(stream_, matrix, wide_, cut.key, ties.get());
      synchronize(stream_);
    }
    synchronize(stream_);
    if (left > 0) throw MatrixChanged();
  }

 private:
  Stream stream_;
  std::span<const ScoredMatrix> matrices_;
  DeviceBuffer<std::uint32_t> nonfinite_;
  bool wide_ = false;
};

}  // namespace

NonFinite describe_nonfinite(Stream stream, std::span<const ScoredMatrix> matrices) {
  for (std::size_t k = 0; k < matrices.size(); ++k) {
    const MatrixView& w = matrices[k].entries;
    const index_t chunks = mask_chunks(w);
    const DeviceBuffer<ChunkNonFinite> found(stream, chunks);
    find_nonfinite(stream, w, found.get());
    NonFinite all{static_cast<index_t>(k), 0, 0};
    for (const ChunkNonFinite& part : to_host(stream, found.get(), chunks)) {
      if (part.count > 0 && all.count == 0) all.first = part.first;  // chunks are in row-major order
      all.count += part.count;
    }
    if (all.count > 0) return all;
  }
  throw MatrixChanged();  // one was seen, and is gone
}

std::optional<NonFinite> prune_smallest(Stream stream, std::span<const ScoredMatrix> matrices, index_t pruned) {
  Selection selection(stream, matrices);
  const std::optional<Cut> cut = selection.find_cut(pruned);
  if (!cut) return describe_nonfinite(stream, matrices);
  selection.write(*cut);
  return std::nullopt;
}

std::optional<NonFinite> keep_largest_of_groups(Stream stream, std::span<const ScoredMatrix> matrices, int n, int m) {
  if (m < 1 || m > masks::kLargestGroup || n < 1 || n > m) throw std::invalid_argument("need 1 <= n <= m <= 64");
  for (const ScoredMatrix& matrix : matrices) {
    if (matrix.entries.cols % m != 0) throw std::invalid_argument("m must divide the number of columns");
  }
  const auto nonfinite = zeros<std::uint32_t>(stream, 1);
  for (const ScoredMatrix& matrix : matrices) write_groups(stream, matrix, n, m, nonfinite.get());
  if (to_host(stream, nonfinite.get(), 1)[0] != 0) return describe_nonfinite(stream, matrices);
  return std::nullopt;
}

}  // namespace mpfast::cuda
