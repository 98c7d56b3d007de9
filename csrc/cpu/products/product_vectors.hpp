// The layout in which the product kernels want vectors (product_kernels.hpp), and sums of such vectors over tasks.
#pragma once

#include <algorithm>
#include <array>
#include <mutex>
#include <utility>
#include <vector>

#include "core/buffer.hpp"
#include "core/types.hpp"
#include "cpu/machine/team.hpp"
#include "cpu/products/product_kernels.hpp"

namespace mpfast::cpu {

constexpr index_t round_up(index_t a, index_t b) { return ceil_div(a, b) * b; }

// `width` vectors, cut into wide groups and then, of what is left, one or two groups of up to kGroupWidth.
template <class Real>
class VectorLayout {
 public:
  VectorLayout(const ProductKernels<Real>& kernels, index_t width, index_t length)
      : lanes_(kernels.lanes),
        paired_(kernels.paired),
        wide_(kernels.wide_group),
        wide_groups_(width / wide_),
        width_(width),
        length_(length) {}

  index_t pair() const { return 2 * lanes_; }  // entries; every piece of a vector starts at a multiple of it
  index_t length() const { return length_; }
  index_t padded() const { return round_up(length_, pair()); }
  index_t size() const { return padded() * width_; }
  index_t groups() const { return wide_groups_ + ceil_div(width_ - wide_groups_ * wide_, kGroupWidth); }
  // The first vector of a group.
  index_t first_vector(index_t group) const {
    return group <= wide_groups_ ? group * wide_ : wide_groups_ * wide_ + (group - wide_groups_) * kGroupWidth;
  }
  index_t group_width(index_t group) const {
    return group < wide_groups_ ? wide_ : std::min(kGroupWidth, width_ - first_vector(group));
  }

  // Where entry `entry` (a multiple of pair()) of a group lies.
  index_t offset(index_t group, index_t entry) const {
    return first_vector(group) * padded() + entry * group_width(group);
  }

  // From vectors one after the other, x[c * length + j].
  void from_plain(Team& team, const Real* x, Real scale, Real* packed) const {
    for_each_pair(team, [&](index_t group, index_t first, index_t count) {
      const index_t width = group_width(group);
      Real* target = packed + offset(group, first);
      std::fill_n(target, pair() * width, Real{0});
      for (index_t c = 0; c < width; ++c) {
        const Real* source = x + (first_vector(group) + c) * length_ + first;
        for_each_entry(count, c, width, [&](index_t k, index_t at) { target[at] = source[k] * scale; });
      }
    });
  }

  // Of entries that may be wider than those of the kernels.
  template <class Entry>
  void to_plain(Team& team, const Entry* packed, Entry scale, Entry* x) const {
    for_each_pair(team, [&](index_t group, index_t first, index_t count) {
      const index_t width = group_width(group);
      const Entry* source = packed + offset(group, first);
      for (index_t c = 0; c < width; ++c) {
        Entry* target = x + (first_vector(group) + c) * length_ + first;
        for_each_entry(count, c, width, [&](index_t k, index_t at) { target[k] = source[at] * scale; });
      }
    });
  }

 private:
  // Calls function(k, position of entry k of vector c within the pair) for the first `count` entries of a pair.
  template <class Function>
  void for_each_entry(index_t count, index_t c, index_t width, const Function& function) const {
    const index_t second = width * lanes_;  // from one register of the vector to its other one
    const index_t start = c * lanes_;
    if (paired_) {
      for (index_t k = 0; k < count; ++k) function(k, start + k % 2 * second + k / 2);
    } else {
      for (index_t k = 0; k < std::min(count, lanes_); ++k) function(k, start + k);
      for (index_t k = lanes_; k < count; ++k) function(k, start + second + k - lanes_);
    }
  }

  // Calls function(group, first entry, number of entries) for all pairs of registers of all groups.
  template <class Function>
  void for_each_pair(Team& team, const Function& function) const {
    constexpr index_t kEntriesPerTask = index_t{1} << 16;
    const index_t pairs = padded() / pair();
    const index_t pairs_per_task = std::max(kEntriesPerTask / (pair() * width_), index_t{1});
    team.parallel_for(ceil_div(pairs, pairs_per_task), [&](index_t task, int) {
      const index_t last = std::min((task + 1) * pairs_per_task, pairs);
      for (index_t group = 0; group < groups(); ++group) {
        for (index_t p = task * pairs_per_task; p < last; ++p) {
          function(group, p * pair(), std::min(pair(), length_ - p * pair()));
        }
      }
    });
  }

  index_t lanes_;
  bool paired_;
  index_t wide_;
  index_t wide_groups_;
  index_t width_;
  index_t length_;
};

// Adds partial results of tasks 0 .. count - 1 in a fixed binary tree, in whatever order they are finished: of two
// neighbours, the right one is always added to the left one, by the worker that finishes second. Buffers are used
// again, so that about workers + log2(count) of them exist at a time.
template <class Real>
class PartialTree {
 public:
  PartialTree(index_t count, index_t size) : size_(size) {
    for (index_t level = count;; level = ceil_div(level, 2)) {
      waiting_.emplace_back(static_cast<std::size_t>(level));
      if (level == 1) break;
    }
  }

  // A buffer of zeros to add to.
  Buffer<Real> acquire() {
    Buffer<Real> buffer;
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        buffer = std::move(free_.back());
        free_.pop_back();
      }
    }
    if (buffer.get() == nullptr) buffer = Buffer<Real>(size_, 1, "partial sums of a product");
    std::fill_n(buffer.get(), size_, Real{0});
    return buffer;
  }

  void finish(index_t task, Buffer<Real> partial) {
    index_t at = task;
    for (std::size_t level = 0; level + 1 < waiting_.size(); ++level, at /= 2) {
      auto& nodes = waiting_[level];
      const index_t partner = at ^ 1;
      if (partner >= static_cast<index_t>(nodes.size())) continue;
      Buffer<Real> other;
      {
        const std::lock_guard lock(mutex_);
        other = std::move(nodes[static_cast<std::size_t>(partner)]);
        if (other.get() == nullptr) {
          nodes[static_cast<std::size_t>(at)] = std::move(partial);
          return;
        }
      }
      if (partner < at) std::swap(partial, other);
      for (index_t k = 0; k < size_; ++k) partial.get()[k] += other.get()[k];
      const std::lock_guard lock(mutex_);
      free_.push_back(std::move(other));
    }
    root_ = std::move(partial);
  }

  // The sum, once every task has finished.
  const Real* root() const { return root_.get(); }

 private:
  index_t size_;
  std::mutex mutex_;
  std::vector<std::vector<Buffer<Real>>> waiting_;
  std::vector<Buffer<Real>> free_;
  Buffer<Real> root_;
};

}  // namespace mpfast::cpu
