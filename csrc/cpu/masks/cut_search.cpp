#include "cpu/masks/cut_search.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "core/changed.hpp"
#include "masks/select.hpp"

namespace mpfast::cpu {

namespace {

constexpr int kMaxCounterBits = 17;
constexpr int kMinCounterBits = 10;
constexpr int kSampleCounterBits = 16;
constexpr index_t kSampleRun = 16;  // entries; one cache line of float
constexpr index_t kSampleStep = 1024;
constexpr index_t kSampleAhead = 12;               // runs
constexpr index_t kSampleFrom = index_t{1} << 20;  // with fewer entries, one more pass is cheaper than a sample

constexpr std::size_t kMostCollected = std::size_t{1} << 21;  // keys

std::size_t position(index_t i) { return static_cast<std::size_t>(i); }

// A key that others are smaller than or equal to.
struct Order {
  std::int64_t key;
  index_t smaller;
  index_t ties;  // with itself
};

// The key of `rank` (from 0) among the keys of a window, in lists: first its bucket of a histogram, then the key among
// the few there. The rank is one of them.
Order order_of(const std::vector<std::span<const std::int64_t>>& lists, const KeyWindow& window, index_t rank) {
  constexpr int kBucketBits = 12;
  const auto range = static_cast<std::uint64_t>(window.high - window.low);
  const int shift = std::max(static_cast<int>(std::bit_width(range)) - kBucketBits, 0);
  const auto bucket_of = [&](std::int64_t key) { return position((key - window.low) >> shift); };
  std::vector<index_t> histogram(std::size_t{1} << kBucketBits);
  for (const auto& keys : lists) {
    for (const std::int64_t key : keys) ++histogram[bucket_of(key)];
  }
  std::size_t bucket = 0;
  index_t smaller = 0;
  while (smaller + histogram[bucket] <= rank) smaller += histogram[bucket++];
  std::vector<std::int64_t> few;
  for (const auto& keys : lists) {
    std::ranges::copy_if(keys, std::back_inserter(few), [&](std::int64_t key) { return bucket_of(key) == bucket; });
  }
  std::ranges::nth_element(few, few.begin() + (rank - smaller));
  const std::int64_t key = few[position(rank - smaller)];
  smaller += std::ranges::count_if(few, [&](std::int64_t each) { return each < key; });
  return {key, smaller, std::ranges::count(few, key)};
}

}  // namespace

KeyKind KeyKind::operator&(const KeyKind& other) const {
  if (wide || other.wide) return {true, 0};
  return {false, std::min(trailing_zeros, other.trailing_zeros)};
}

KeyKind key_kind(DType dtype, double scale) {
  constexpr int kFloatMantissa = 23;
  if (needs_double(dtype)) return {true, 0};
  if (scale != 1) return {false, 0};
  return {false, kFloatMantissa - dispatch(dtype, []<DType each>() { return Entry<each>::kMantissaBits; })};
}

CutSearch::CutSearch(index_t total, index_t pruned, KeyKind keys)
    : total_(total),
      pruned_(pruned),
      keys_(keys),
      high_(keys.wide ? masks::Score<std::int64_t>::kLargest : masks::Score<std::int32_t>::kLargest) {
  if (total < 1 || pruned < 0 || pruned > total) {
    throw std::invalid_argument("pruned must lie between 0 and the number of entries");
  }
  const int bits = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(total / 16)));
  counter_bits_ = std::clamp(bits, kMinCounterBits, kMaxCounterBits);
  const int key_bits = keys.wide ? masks::Score<std::int64_t>::kBits : masks::Score<std::int32_t>::kBits;
  sampling_ = total >= kSampleFrom;
  start_round(sampling_ ? KeyWindow{0, high_, key_bits - kSampleCounterBits} : cover(low_, high_));
}

std::optional<NonFinite> CutSearch::count(Team& team, std::span<const ScoredMatrix> matrices) {
  const std::vector<ScoredMatrix> flat = flattened(matrices);
  const std::vector<Block> blocks = cut_into_blocks(flat, 1);
  workers_.resize(std::max(workers_.size(), position(team.size())));
  for (Worker& worker : workers_) {
    if (collecting_) {
      worker.scratch.resize(position(kBlockEntries));
    } else {
      worker.histogram.resize(position(window_.buckets()));
    }
  }
  std::vector<FirstBad> bad(position(team.size()));
  team.parallel_for(static_cast<index_t>(blocks.size()), [&](index_t b, int w) {
    const Block& block = blocks[position(b)];
    const ScoredMatrix& matrix = flat[position(block.matrix)];
    Worker& worker = workers_[position(w)];
    KeyCounts mine;  // not in the worker: its neighbours share the cache line
    mine.histogram = worker.histogram.data();
    if (collecting_) mine.collected = worker.scratch.data();
    sampling_ ? sample_block(matrix, block, mine, worker) : count_block(matrix, block, mine, worker);
    worker.below += mine.below;
    if (mine.nonfinite) bad[position(w)].see(block.matrix);
  });
  if (first_bad(bad) >= 0) return describe_nonfinite(team, flat, first_bad(bad));
  for (const Block& block : blocks) seen_ += block.size();
  return std::nullopt;
}

void CutSearch::narrow() {
  if (seen_ != total_) throw std::logic_error("every entry must be counted once in a round");
  if (sampling_) {
    sampling_ = false;
    return guess_window(merged());
  }
  const index_t rank = std::max<index_t>(pruned_, 1) - 1;
  index_t before = 0;
  for (const Worker& worker : workers_) before += worker.below;
  if (rank < before) return narrow_to(low_, window_.low - 1);
  if (collecting_) return narrow_collected(rank, before);
  const std::vector<std::uint64_t> histogram = merged();
  const auto counter = [&](std::int64_t bucket) { return static_cast<index_t>(histogram[position(bucket)]); };
  std::int64_t bucket = 0;
  while (bucket < window_.buckets() && before + counter(bucket) <= rank) before += counter(bucket++);
  if (bucket == window_.buckets()) return narrow_to(window_.high + 1, high_);
  if (window_.shift <= keys_.trailing_zeros) {
    // At most one key of this bucket occurs: the first multiple of 2^trailing_zeros in it.
    const std::int64_t step = std::int64_t{1} << keys_.trailing_zeros;
    key_ = (window_.low + (bucket << window_.shift) + step - 1) / step * step;
    ties_ = counter(bucket);
    pruned_ties_ = pruned_ - before;
    done_ = true;
    return;
  }
  const std::int64_t low = window_.low + (bucket << window_.shift);
  narrow_to(low, std::min(window_.high, low + ((std::int64_t{1} << window_.shift) - 1)));
}

void CutSearch::narrow_to(std::int64_t low, std::int64_t high) {
  if (low > high) throw MatrixChanged();
  low_ = low;
  high_ = high;
  start_round(cover(low_, high_));
}

// The cut among the keys of the window, if they all were collected and it is one of them.
void CutSearch::narrow_collected(index_t rank, index_t before) {
  std::vector<std::span<const std::int64_t>> lists;
  index_t size = 0;
  for (const Worker& worker : workers_) {
    // A worker that has given up counts the window instead, like all others.
    if (worker.collected.size() > kMostCollected) return start_round(window_);
    lists.emplace_back(worker.collected);
    size += std::ssize(worker.collected);
  }
  const index_t within = rank - before;
  if (within >= size) return narrow_to(window_.high + 1, high_);
  const Order found = order_of(lists, window_, within);
  key_ = found.key;
  ties_ = found.ties;
  pruned_ties_ = pruned_ - before - found.smaller;
  workers_.clear();
  done_ = true;
}

void CutSearch::write(Team& team, std::span<const ScoredMatrix> matrices) {
  if (!done_) throw std::logic_error("the search is not done");
  const std::vector<ScoredMatrix> flat = flattened(matrices);
  const std::vector<Block> blocks = cut_into_blocks(flat, 1);
  const auto matrix_of = [&](const Block& block) -> const ScoredMatrix& { return flat[position(block.matrix)]; };
  // When all ties are pruned, there is nothing to share out.
  const bool partial = pruned_ties_ < ties_;
  const std::int64_t first_kept = partial ? key_ : key_ + 1;
  std::vector<index_t> ties(blocks.size());
  team.parallel_for(static_cast<index_t>(blocks.size()), [&](index_t b, int) {
    const Block& block = blocks[position(b)];
    ties[position(b)] = write_block(matrix_of(block), block, first_kept);
  });
  if (partial) {
    // Ties were kept so far. They are pruned in block order until the budget is used up.
    std::size_t last = 0;
    while (last < blocks.size() && pruned_ties_ > 0 && ties[last] <= pruned_ties_) pruned_ties_ -= ties[last++];
    team.parallel_for(static_cast<index_t>(last), [&](index_t b, int) {
      const Block& block = blocks[position(b)];
      if (ties[position(b)] > 0) write_block(matrix_of(block), block, key_ + 1);
    });
    if (last < blocks.size() && pruned_ties_ > 0) {
      prune_first_ties(matrix_of(blocks[last]), blocks[last], pruned_ties_);
      pruned_ties_ = 0;
    }
  }
  for (const Block& block : blocks) written_ += block.size();
  if (partial && pruned_ties_ > 0 && written_ >= total_) throw MatrixChanged();
}

KeyWindow CutSearch::cover(std::int64_t low, std::int64_t high) const {
  const auto keys = static_cast<std::uint64_t>(high - low);  // minus one
  const int shift = std::max(static_cast<int>(std::bit_width(keys)) - counter_bits_, 0);
  return {low, high, shift};
}

// A window that most likely holds the cut, guessed from the sample. It reaches ten standard deviations of a sample of
// independent entries to either side, because neighbours are alike.
void CutSearch::guess_window(const std::vector<std::uint64_t>& sampled) {
  const auto size = static_cast<double>(std::accumulate(sampled.begin(), sampled.end(), std::uint64_t{0}));
  const double share = (static_cast<double>(std::max<index_t>(pruned_, 1)) - 0.5) / static_cast<double>(total_);
  const double expected = share * size;
  const double margin = 10 * std::sqrt(share * (1 - share) * size) + 10;
  std::int64_t first = 0;
  std::int64_t last = 0;
  double seen = 0;
  double before = 0;
  double inside = 0;
  for (std::int64_t b = 0; b < window_.buckets(); ++b) {
    if (seen <= expected - margin) {
      first = b;
      before = seen;
    }
    if (seen <= expected + margin) last = b;
    seen += static_cast<double>(sampled[position(b)]);
    if (b == last) inside = seen - before;
  }
  const std::int64_t end = (last + 1) << window_.shift;
  const KeyWindow window = cover(first << window_.shift, std::min(end - 1, window_.high));
  const bool few = inside / size * static_cast<double>(total_) < static_cast<double>(kMostCollected) / 2;
  // One count is enough for keys that end in zeros.
  start_round(window, few && window.shift > keys_.trailing_zeros);
}

void CutSearch::start_round(const KeyWindow& window, bool collecting) {
  window_ = window;
  collecting_ = collecting;
  seen_ = 0;
  workers_.clear();
}

std::vector<std::uint64_t> CutSearch::merged() const {
  std::vector<std::uint64_t> all(position(window_.buckets()));
  for (const Worker& worker : workers_) {
    std::transform(all.begin(), all.end(), worker.histogram.begin(), all.begin(), std::plus<>());
  }
  return all;
}

void CutSearch::count_block(const ScoredMatrix& matrix, const Block& block, KeyCounts& counts, Worker& worker) const {
  const MaskKernels& kernels = active_mask_kernels(matrix.entries.dtype);
  const auto kernel = keys_.wide ? kernels.count_keys_wide : kernels.count_keys_narrow;
  for_each_run(matrix.entries, block, 1, [&](const void* entries, index_t count, index_t) {
    kernel(entries, count, matrix.scale, window_, counts);
    if (!collecting_) return;
    const index_t added = std::exchange(counts.collected_size, 0);
    if (worker.collected.size() > kMostCollected) return;  // given up; see narrow_collected
    worker.collected.insert(worker.collected.end(), counts.collected, counts.collected + added);
  });
}

// A short run out of every kSampleStep entries, at varying distances so that no period of the matrix is in step. Runs
// lie far apart, so that each is asked for some runs ahead.
void CutSearch::sample_block(const ScoredMatrix& matrix, const Block& block, KeyCounts& counts, Worker& worker) const {
  const index_t runs = ceil_div(block.size(), kSampleStep);
  const auto start_of = [&](index_t run) {
    const auto hash = static_cast<std::uint32_t>(run + block.row + block.col) * 2654435761U;
    return run * kSampleStep + static_cast<index_t>(hash >> 22) / kSampleRun * kSampleRun;  // within its step
  };
  for (index_t run = 0; run < runs; ++run) {
    if (const index_t next = start_of(run + kSampleAhead); next < block.size()) {
      __builtin_prefetch(address(matrix.entries, block.row + next / block.cols, block.col + next % block.cols));
    }
    const index_t at = start_of(run);
    if (at >= block.size()) break;
    const index_t col = at % block.cols;
    const Block piece = {block.matrix, block.row + at / block.cols, 1, block.col + col,
                         std::min(kSampleRun, block.cols - col)};
    count_block(matrix, piece, counts, worker);
  }
}

// The mask that keeps keys from `cut` on; returns how many keys equal it.
index_t CutSearch::write_block(const ScoredMatrix& matrix, const Block& block, std::int64_t cut) const {
  const MaskKernels& kernels = active_mask_kernels(matrix.entries.dtype);
  const auto kernel = keys_.wide ? kernels.write_mask_wide : kernels.write_mask_narrow;
  index_t ties = 0;
  for_each_run(matrix.entries, block, 1, [&](const void* entries, index_t count, index_t flat) {
    ties += kernel(entries, count, matrix.scale, cut, matrix.keep + flat);
  });
  return ties;
}

// The one block where some ties are pruned and some kept: the ties are what two neighbouring cuts disagree on.
void CutSearch::prune_first_ties(const ScoredMatrix& matrix, const Block& block, index_t budget) const {
  const index_t begin = block.row * matrix.entries.cols + block.col;
  std::uint8_t* const keep = matrix.keep + begin;
  const std::vector<std::uint8_t> with_ties(keep, keep + block.size());
  write_block(matrix, block, key_ + 1);
  for (index_t i = 0; i < block.size(); ++i) {
    const std::uint8_t before = with_ties[position(i)];
    if (before == keep[i]) continue;
    if (budget > 0) {
      --budget;
    } else {
      keep[i] = before;
    }
  }
}

}  // namespace mpfast::cpu
