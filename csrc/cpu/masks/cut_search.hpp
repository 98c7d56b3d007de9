// The search for the score that separates what is pruned from what is kept, over any number of matrices that need not
// be in memory at the same time.
//
//   CutSearch search(total, pruned, keys);
//   while (!search.done()) {
//     search.count(team, matrices);  // in one call or several: every matrix once a round, in any order
//     search.narrow();
//   }
//   search.write(team, matrices);    // in one call or several: every matrix once, in the order that breaks ties
//
// Each round histograms the keys (masks/select.hpp) of a window known to hold the cut, and the next window is one
// bucket of that histogram. From 2^20 entries on, the first round looks at 1/64 of them and guesses a window; a wrong
// guess costs a round, never a wrong mask. A window of few keys is not counted but collected, and the cut found among
// them: the weights are then read twice in all, once for that and once to write. So are unscaled entries of 16 bits,
// however many there are; others are counted twice. The window gets smaller with every round but the first, and a round
// that does not find the cut where the last one saw it throws MatrixChanged: no search goes on for ever. Extra memory:
// a histogram of at most 2^17 counters per thread or the keys that are collected, at most 2^21 in all, and one counter
// per 2^17 entries.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/types.hpp"
#include "cpu/machine/team.hpp"
#include "cpu/masks/entry_blocks.hpp"
#include "cpu/masks/mask_kernels.hpp"
#include "cpu/masks/masks.hpp"

namespace mpfast::cpu {

// What all keys of a search have in common.
struct KeyKind {
  bool wide = false;       // scores in double, which entries stored in double need
  int trailing_zeros = 0;  // low bits that are zero in every key: unscaled entries of 16 bits have some

  // What the keys of both have in common.
  KeyKind operator&(const KeyKind& other) const;
};

// The keys of one matrix.
KeyKind key_kind(DType dtype, double scale);

class CutSearch {
 public:
  // For the `pruned` smallest of `total` entries.
  CutSearch(index_t total, index_t pruned, KeyKind keys);

  bool done() const { return done_; }

  // Counts the entries of these matrices in this round. When the result is set, the search has failed.
  std::optional<NonFinite> count(Team& team, std::span<const ScoredMatrix> matrices);

  // Ends a round. Throws std::logic_error unless exactly `total` entries were seen in it, MatrixChanged when they
  // cannot be those of the rounds before.
  void narrow();

  // Masks of the next matrices. Throws MatrixChanged when all have been written and ties are left over.
  void write(Team& team, std::span<const ScoredMatrix> matrices);

 private:
  // One worker's counts of a round.
  struct Worker {
    std::vector<std::uint64_t> histogram;
    std::vector<std::int64_t> collected;
    std::vector<std::int64_t> scratch;
    index_t below = 0;
  };

  KeyWindow cover(std::int64_t low, std::int64_t high) const;
  void guess_window(const std::vector<std::uint64_t>& sampled);
  void start_round(const KeyWindow& window, bool collecting = false);
  void narrow_to(std::int64_t low, std::int64_t high);
  void narrow_collected(index_t rank, index_t before);
  std::vector<std::uint64_t> merged() const;
  void count_block(const ScoredMatrix& matrix, const Block& block, KeyCounts& counts, Worker& worker) const;
  void sample_block(const ScoredMatrix& matrix, const Block& block, KeyCounts& counts, Worker& worker) const;
  index_t write_block(const ScoredMatrix& matrix, const Block& block, std::int64_t cut) const;
  void prune_first_ties(const ScoredMatrix& matrix, const Block& block, index_t budget) const;

  index_t total_;
  index_t pruned_;
  KeyKind keys_;
  bool sampling_ = false;
  bool collecting_ = false;
  bool done_ = false;
  int counter_bits_;
  index_t seen_ = 0;
  std::int64_t low_ = 0;
  std::int64_t high_;
  KeyWindow window_;
  std::vector<Worker> workers_;

  // Once done.
  std::int64_t key_ = 0;     // everything below is pruned, everything above is kept
  index_t ties_ = 0;         // entries with this very key
  index_t pruned_ties_ = 0;  // how many of them are still to be pruned
  index_t written_ = 0;      // entries whose masks are
};

}  // namespace mpfast::cpu
