#include "cpu/masks.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "cpu/isa.hpp"
#include "cpu/mask_kernels.hpp"
#include "masks/n_m.hpp"
#include "masks/select.hpp"

namespace mpfast::cpu {

namespace {

constexpr index_t kBlockEntries = index_t{1} << 17;  // of one task: 0.1 ms of work, so cancelling is prompt
constexpr index_t kTileEntries = index_t{1} << 13;   // gathered at a time when rows are not contiguous; stays in L1/L2
constexpr index_t kTileColumns = 256;
constexpr index_t kShortRow = 64;  // contiguous rows below this length are gathered too, to give the kernels long runs

constexpr int kMaxCounterBits = 17;
constexpr int kMinCounterBits = 10;
constexpr int kSampleCounterBits = 16;
constexpr index_t kSampleRun = 16;  // entries; one cache line of float
constexpr index_t kSampleStep = 1024;
constexpr index_t kSampleFrom = index_t{1} << 20;  // below this many entries one more pass is cheaper than a sample

const MaskKernels& kernels() {
#ifdef MPFAST_X86_DISPATCH
  switch (active_isa()) {
    case Isa::avx512:
      return avx512::mask_kernels;
    case Isa::avx2:
      return avx2::mask_kernels;
    default:
      break;
  }
#endif
  return baseline::mask_kernels;
}

// A piece of one matrix that is contiguous in row-major order: whole rows, or a stretch of one row.
struct Block {
  index_t matrix = 0;
  index_t row = 0;
  index_t rows = 0;
  index_t col = 0;
  index_t cols = 0;

  index_t size() const { return rows * cols; }
};

// The same entries in the same row-major order, as one long row where memory allows it.
MatrixView flattened(MatrixView w) {
  if (w.row_stride != w.cols * w.col_stride && w.rows != 1) return w;
  return {w.data, w.dtype, 1, w.rows * w.cols, 0, w.col_stride};
}

// Cuts by the shapes alone. Stretches of a row are multiples of `unit` long.
std::vector<Block> cut_into_blocks(std::span<const ScoredMatrix> matrices, index_t unit) {
  std::vector<Block> blocks;
  for (std::size_t k = 0; k < matrices.size(); ++k) {
    const auto matrix = static_cast<index_t>(k);
    const MatrixView& w = matrices[k].entries;
    if (w.cols > kBlockEntries) {
      const index_t step = kBlockEntries / unit * unit;
      for (index_t row = 0; row < w.rows; ++row) {
        for (index_t col = 0; col < w.cols; col += step) {
          blocks.push_back({matrix, row, 1, col, std::min(step, w.cols - col)});
        }
      }
    } else {
      const index_t step = std::max<index_t>(kBlockEntries / w.cols, 1);
      for (index_t row = 0; row < w.rows; row += step) {
        blocks.push_back({matrix, row, std::min(step, w.rows - row), 0, w.cols});
      }
    }
  }
  return blocks;
}

template <class Bits>
void gather_tile(const MatrixView& w, const Block& tile, Bits* out) {
  const Bits* data = static_cast<const Bits*>(w.data) + tile.row * w.row_stride + tile.col * w.col_stride;
  // The inner loop follows the smaller stride in memory: each cache line is read once.
  if (std::abs(w.row_stride) < std::abs(w.col_stride)) {
    for (index_t j = 0; j < tile.cols; ++j) {
      for (index_t i = 0; i < tile.rows; ++i) out[i * tile.cols + j] = data[i * w.row_stride + j * w.col_stride];
    }
  } else {
    for (index_t i = 0; i < tile.rows; ++i) {
      for (index_t j = 0; j < tile.cols; ++j) out[i * tile.cols + j] = data[i * w.row_stride + j * w.col_stride];
    }
  }
}

void gather(const MatrixView& w, const Block& tile, std::byte* out) {
  switch (size_of(w.dtype)) {
    case 8:
      return gather_tile(w, tile, reinterpret_cast<std::uint64_t*>(out));
    case 4:
      return gather_tile(w, tile, reinterpret_cast<std::uint32_t*>(out));
    default:
      return gather_tile(w, tile, reinterpret_cast<std::uint16_t*>(out));
  }
}

const std::byte* address(const MatrixView& w, index_t row, index_t col) {
  const auto offset = (row * w.row_stride + col * w.col_stride) * static_cast<index_t>(size_of(w.dtype));
  return static_cast<const std::byte*>(w.data) + offset;
}

// Calls visit(entries, count, flat) for runs of consecutive entries that together make up the block, each a multiple of
// `unit` long; flat is the row-major index of the first. Runs of a block of one row come in order.
template <class Visit>
void for_each_run(const MatrixView& w, const Block& block, index_t unit, Visit&& visit) {
  if (w.col_stride == 1 && (block.rows == 1 || block.cols >= kShortRow)) {
    for (index_t i = block.row; i < block.row + block.rows; ++i) {
      visit(address(w, i, block.col), block.cols, i * w.cols + block.col);
    }
    return;
  }
  alignas(64) std::byte scratch[kTileEntries * sizeof(double)];
  const index_t width = block.cols <= kTileColumns ? block.cols : kTileColumns / unit * unit;
  const index_t height = kTileEntries / width;
  for (index_t row = block.row; row < block.row + block.rows; row += height) {
    const index_t rows = std::min(height, block.row + block.rows - row);
    for (index_t col = block.col; col < block.col + block.cols; col += width) {
      const Block tile = {block.matrix, row, rows, col, std::min(width, block.col + block.cols - col)};
      gather(w, tile, scratch);
      if (tile.cols == w.cols) {
        visit(static_cast<const std::byte*>(scratch), tile.size(), row * w.cols);
        continue;
      }
      const auto row_bytes = static_cast<std::size_t>(tile.cols) * size_of(w.dtype);
      for (index_t i = 0; i < rows; ++i) {
        visit(static_cast<const std::byte*>(scratch) + static_cast<std::size_t>(i) * row_bytes, tile.cols,
              (row + i) * w.cols + col);
      }
    }
  }
}

template <DType dtype>
void find_nonfinite(const void* entries, index_t count, index_t flat, NonFinite& found) {
  const auto* bits = static_cast<const typename masks::Stored<dtype>::Bits*>(entries);
  for (index_t i = 0; i < count; ++i) {
    if (masks::magnitude<dtype>(bits[i]) < masks::Stored<dtype>::kInfinity) continue;
    if (found.count == 0 || flat + i < found.first) found.first = flat + i;
    ++found.count;
  }
}

// Only reached on the way to an error.
NonFinite describe_nonfinite(Team& team, std::span<const ScoredMatrix> matrices, index_t matrix) {
  const auto one = matrices.subspan(static_cast<std::size_t>(matrix), 1);
  const MatrixView& w = one[0].entries;
  const std::vector<Block> blocks = cut_into_blocks(one, 1);
  std::vector<NonFinite> found(blocks.size());
  team.parallel_for(static_cast<index_t>(blocks.size()), [&](index_t b, int) {
    auto& mine = found[static_cast<std::size_t>(b)];
    for_each_run(w, blocks[static_cast<std::size_t>(b)], 1, [&](const void* entries, index_t count, index_t flat) {
      switch (w.dtype) {
        case DType::float64:
          return find_nonfinite<DType::float64>(entries, count, flat, mine);
        case DType::float32:
          return find_nonfinite<DType::float32>(entries, count, flat, mine);
        case DType::float16:
          return find_nonfinite<DType::float16>(entries, count, flat, mine);
        default:
          return find_nonfinite<DType::bfloat16>(entries, count, flat, mine);
      }
    });
  });
  NonFinite all{matrix, 0, 0};
  for (const NonFinite& part : found) {
    if (part.count > 0 && all.count == 0) all.first = part.first;  // blocks are in row-major order
    all.count += part.count;
  }
  return all;
}

// One worker's smallest index of a matrix with a non-finite entry; a cache line each.
struct alignas(64) FirstBad {
  index_t matrix = -1;
  void see(index_t other) {
    if (matrix < 0 || other < matrix) matrix = other;
  }
};

index_t first_bad(const std::vector<FirstBad>& workers) {
  FirstBad all;
  for (const FirstBad& worker : workers) {
    if (worker.matrix >= 0) all.see(worker.matrix);
  }
  return all.matrix;
}

struct Cut {
  std::int64_t key = 0;     // everything below is pruned, everything above is kept
  index_t ties = 0;         // entries with this very key
  index_t pruned_ties = 0;  // how many of them are pruned
};

class Selection {
 public:
  Selection(Team& team, std::span<const ScoredMatrix> matrices)
      : team_(team), blocks_(cut_into_blocks(matrices, 1)), bad_(static_cast<std::size_t>(team.size())) {
    for (const ScoredMatrix& matrix : matrices) {
      matrices_.push_back(matrix);
      wide_ = wide_ || matrix.entries.dtype == DType::float64;
    }
    total_ = std::accumulate(blocks_.begin(), blocks_.end(), index_t{0},
                             [](index_t sum, const Block& block) { return sum + block.size(); });
    const int bits = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(total_ / 16)));
    counter_bits_ = std::clamp(bits, kMinCounterBits, kMaxCounterBits);
    stride_ = (std::size_t{1} << std::max(counter_bits_, total_ >= kSampleFrom ? kSampleCounterBits : 0)) + kLine;
    histograms_.resize(stride_ * static_cast<std::size_t>(team.size()));
  }

  // Which matrix has non-finite entries, or -1. Known once a cut has been looked for.
  index_t bad_matrix() const { return first_bad(bad_); }

  // The key of the entry of rank `pruned` - 1.
  Cut find_cut(index_t pruned) {
    const index_t rank = std::max<index_t>(pruned, 1) - 1;
    std::int64_t low = 0;
    std::int64_t high = wide_ ? masks::Score<std::int64_t>::kLargest : masks::Score<std::int32_t>::kLargest;
    KeyWindow window = total_ >= kSampleFrom ? guess_window(rank, high) : cover(low, high);
    for (;;) {
      const index_t below = count_keys(window, false);
      if (bad_matrix() >= 0) return {};
      if (rank < below) {
        high = window.low - 1;
      } else {
        index_t before = below;
        std::int64_t bucket = 0;
        while (bucket < window.buckets() && before + counter(bucket) <= rank) before += counter(bucket++);
        if (bucket == window.buckets()) {
          low = window.high + 1;
        } else if (window.shift == 0) {
          return {window.low + bucket, counter(bucket), pruned - before};
        } else {
          low = window.low + (bucket << window.shift);
          high = std::min(window.high, low + ((std::int64_t{1} << window.shift) - 1));
        }
      }
      window = cover(low, high);
    }
  }

  void write(const Cut& cut) {
    // When all the ties go, there is nothing to share out.
    const bool partial = cut.pruned_ties < cut.ties;
    const std::int64_t first_kept = partial ? cut.key : cut.key + 1;
    std::vector<index_t> ties(blocks_.size());
    for_each_block([&](std::size_t b, int) { ties[b] = write_block(blocks_[b], first_kept); });
    if (!partial || cut.pruned_ties == 0) return;

    // Ties were kept so far. They are pruned in block order until the budget is used up.
    std::size_t last = 0;
    index_t left = cut.pruned_ties;
    while (ties[last] <= left) left -= ties[last++];
    team_.parallel_for(static_cast<index_t>(last), [&](index_t b, int) {
      if (ties[static_cast<std::size_t>(b)] > 0) write_block(blocks_[static_cast<std::size_t>(b)], cut.key + 1);
    });
    prune_first_ties(blocks_[last], cut.key, left);
  }

 private:
  static constexpr std::size_t kLine = 8;  // counters between two threads' histograms

  template <class Task>
  void for_each_block(Task&& task) {
    team_.parallel_for(static_cast<index_t>(blocks_.size()),
                       [&](index_t b, int worker) { task(static_cast<std::size_t>(b), worker); });
  }

  KeyWindow cover(std::int64_t low, std::int64_t high) const {
    const auto keys = static_cast<std::uint64_t>(high - low);  // minus one
    const int shift = std::max(static_cast<int>(std::bit_width(keys)) - counter_bits_, 0);
    return {low, high, shift};
  }

  // A window that most likely holds the key of the given rank, from a sample.
  KeyWindow guess_window(index_t rank, std::int64_t highest) {
    const int key_bits = wide_ ? masks::Score<std::int64_t>::kBits : masks::Score<std::int32_t>::kBits;
    const KeyWindow everything = {0, highest, key_bits - kSampleCounterBits};
    count_keys(everything, true);
    index_t size = 0;
    for (std::int64_t b = 0; b < everything.buckets(); ++b) size += counter(b);
    // Ten standard deviations of a sample of independent entries: neighbours are alike.
    const double share = (static_cast<double>(rank) + 0.5) / static_cast<double>(total_);
    const double expected = share * static_cast<double>(size);
    const double margin = 10 * std::sqrt(share * (1 - share) * static_cast<double>(size)) + 10;
    std::int64_t first = 0;
    std::int64_t last = 0;
    double seen = 0;
    for (std::int64_t b = 0; b < everything.buckets(); ++b) {
      if (seen <= expected - margin) first = b;
      if (seen <= expected + margin) last = b;
      seen += static_cast<double>(counter(b));
    }
    const std::int64_t end = (last + 1) << everything.shift;
    return cover(first << everything.shift, std::min(end - 1, highest));
  }

  // Fills the histogram of the window over all entries, or over a sample of them, and returns how many keys lie below.
  index_t count_keys(const KeyWindow& window, bool sample) {
    const auto buckets = static_cast<std::size_t>(window.buckets());
    const auto workers = static_cast<std::size_t>(team_.size());
    team_.parallel_for(team_.size(), [&](index_t worker, int) {
      std::fill_n(&histograms_[stride_ * static_cast<std::size_t>(worker)], buckets, 0);
    });
    std::vector<KeyCounts> counts(workers);
    for_each_block([&](std::size_t b, int worker) {
      KeyCounts mine;  // not in `counts`, which the threads share
      mine.histogram = &histograms_[stride_ * static_cast<std::size_t>(worker)];
      if (sample) {
        sample_block(blocks_[b], window, mine);
      } else {
        count_block(blocks_[b], window, mine);
      }
      counts[static_cast<std::size_t>(worker)].below += mine.below;
      if (mine.nonfinite) bad_[static_cast<std::size_t>(worker)].see(blocks_[b].matrix);
    });
    for (std::size_t worker = 1; worker < workers; ++worker) {
      const auto* other = &histograms_[stride_ * worker];
      for (std::size_t b = 0; b < buckets; ++b) histograms_[b] += other[b];
    }
    return std::accumulate(counts.begin(), counts.end(), index_t{0},
                           [](index_t sum, const KeyCounts& worker) { return sum + worker.below; });
  }

  index_t counter(std::int64_t bucket) const {
    return static_cast<index_t>(histograms_[static_cast<std::size_t>(bucket)]);
  }

  void count_block(const Block& block, const KeyWindow& window, KeyCounts& counts) const {
    const ScoredMatrix& matrix = matrices_[static_cast<std::size_t>(block.matrix)];
    const auto dtype = static_cast<std::size_t>(matrix.entries.dtype);
    const auto kernel = wide_ ? kernels().count_keys_wide[dtype] : kernels().count_keys_narrow[dtype];
    for_each_run(matrix.entries, block, 1, [&](const void* entries, index_t count, index_t) {
      kernel(entries, count, matrix.scale, window, counts);
    });
  }

  // A short run out of every kSampleStep entries, at varying distances so that no period of the matrix is in step.
  void sample_block(const Block& block, const KeyWindow& window, KeyCounts& counts) const {
    for (index_t start = 0; start < block.size(); start += kSampleStep) {
      const auto hash = static_cast<std::uint32_t>(start / kSampleStep + block.row + block.col) * 2654435761U;
      const index_t at = start + static_cast<index_t>(hash >> 22);  // 0 to kSampleStep - 1
      if (at >= block.size()) break;
      const index_t col = at % block.cols;
      const Block run = {block.matrix, block.row + at / block.cols, 1, block.col + col,
                         std::min(kSampleRun, block.cols - col)};
      count_block(run, window, counts);
    }
  }

  index_t write_block(const Block& block, std::int64_t cut) const {
    const ScoredMatrix& matrix = matrices_[static_cast<std::size_t>(block.matrix)];
    const auto dtype = static_cast<std::size_t>(matrix.entries.dtype);
    const auto kernel = wide_ ? kernels().write_mask_wide[dtype] : kernels().write_mask_narrow[dtype];
    index_t ties = 0;
    for_each_run(matrix.entries, block, 1, [&](const void* entries, index_t count, index_t flat) {
      ties += kernel(entries, count, matrix.scale, cut, matrix.keep + flat);
    });
    return ties;
  }

  // The one block where some ties are pruned and some kept: the ties are what two neighbouring cuts disagree on.
  void prune_first_ties(const Block& block, std::int64_t key, index_t budget) const {
    const MatrixView& w = matrices_[static_cast<std::size_t>(block.matrix)].entries;
    std::uint8_t* keep = matrices_[static_cast<std::size_t>(block.matrix)].keep;
    const index_t begin = block.row * w.cols + block.col;
    std::vector<std::uint8_t> with_ties(keep + begin, keep + begin + block.size());
    write_block(block, key + 1);
    for (index_t i = 0; i < block.size(); ++i) {
      const std::uint8_t before = with_ties[static_cast<std::size_t>(i)];
      if (before == keep[begin + i]) continue;
      if (budget > 0) {
        --budget;
      } else {
        keep[begin + i] = before;
      }
    }
  }

  Team& team_;
  std::vector<ScoredMatrix> matrices_;
  std::vector<Block> blocks_;
  std::vector<FirstBad> bad_;
  std::vector<std::uint64_t> histograms_;
  std::size_t stride_ = 0;
  index_t total_ = 0;
  int counter_bits_ = 0;
  bool wide_ = false;
};

std::vector<ScoredMatrix> flattened(std::span<const ScoredMatrix> matrices) {
  std::vector<ScoredMatrix> flat(matrices.begin(), matrices.end());
  for (ScoredMatrix& matrix : flat) matrix.entries = flattened(matrix.entries);
  return flat;
}

}  // namespace

std::optional<NonFinite> prune_smallest(Team& team, std::span<const ScoredMatrix> matrices, index_t pruned) {
  const std::vector<ScoredMatrix> flat = flattened(matrices);
  Selection selection(team, flat);
  const Cut cut = selection.find_cut(pruned);
  if (selection.bad_matrix() >= 0) return describe_nonfinite(team, flat, selection.bad_matrix());
  selection.write(cut);
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
    const auto kernel = kernels().keep_largest[static_cast<std::size_t>(matrix.entries.dtype)];
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
