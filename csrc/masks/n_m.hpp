// Which n of m neighbours are kept: those of largest magnitude, and of equal ones the later.
//
// The rank of an entry is the number of entries of its group that are pruned before it: the smaller ones, and the equal
// ones at a lower index. Ranks are a permutation of 0..m-1 whatever the ties, so `rank >= m - n` keeps exactly n. They
// need comparisons only, no sorting and no branch.
//
// Shared by the host and the device; internal linkage as in select.hpp.
#pragma once

#include <cstdint>

namespace mpfast::masks {

constexpr int kLargestGroup = 64;

// Whether entry i is pruned before entry j.
template <class Key>
static inline constexpr bool precedes(Key key_i, int i, Key key_j, int j) {
  return i < j ? key_i <= key_j : key_i < key_j;
}

// Ranks of kLanes groups side by side: keys[j][lane] is entry j of group `lane`, and rank[j][lane] its rank.
// m (m - 1) / 2 comparisons for kLanes groups: of every pair exactly one precedes the other.
template <int kLanes, class Key>
static inline void rank_groups(const Key (*keys)[kLanes], int m, Key (*rank)[kLanes]) {
  for (int j = 0; j < m; ++j) {
    Key ahead[kLanes] = {};
    for (int i = 0; i < j; ++i) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const Key first = keys[i][lane] <= keys[j][lane] ? 1 : 0;
        ahead[lane] = static_cast<Key>(ahead[lane] + first);
        rank[i][lane] = static_cast<Key>(rank[i][lane] + 1 - first);
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) rank[j][lane] = ahead[lane];
  }
}

}  // namespace mpfast::masks
