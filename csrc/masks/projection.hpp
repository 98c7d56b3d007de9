// Which d of m neighbouring weights cost least to drop, when the cost of dropping a set D is the quadratic form
//
//   Q(D) = sum over i, j in D of A_ij,   A = diag(u) C diag(u) + diag(prior),
//
// with C the second moment of the layer's inputs: the mean squared change of the output.
//
// For m <= 16 every D is looked at, without forming its cost from scratch. The slots are cut in halves, D = D1 + D2:
//
//   Q(D) = Q1[D1] + Q2[D2] + sum over j in D2 of c_j(D1),   c_j(D1) = 2 sum over i in D1 of A_ij.
//
// Q1 and Q2 are tables over the subsets of a half. For one D1 the sum over D2 is cut once more, into a table for the
// lower and one for the upper quarter, so that an additional D2 costs one addition and one comparison. This runs in
// float on V, which holds as many groups side by side as fit into a register. Whatever comes within the rounding error
// of the least is then compared in double, so that the answer is the one that double throughout would give.
//
// Of equal costs the lexicographically smallest D wins. Internal linkage as in select.hpp.
#pragma once

#include <bit>
#include <cstdint>

namespace mpfast::masks {

namespace {

constexpr int kLargestTable = 16;

// The upper triangle of an m x m matrix is kept row by row; where its entry (i, j), i <= j, lies.
constexpr int triangle(int m, int i, int j) { return i * m - i * (i - 1) / 2 + (j - i); }
constexpr int kTriangle = kLargestTable * (kLargestTable + 1) / 2;

// Rounding of any tabulated cost, relative to the sum of all |A_ij|: at most 32 roundings of 2^-24 on the way of a
// term.
constexpr float kTableError = 32 * 0x1p-24F;

constexpr int bit_count(unsigned bits) {
  int count = 0;
  for (; bits != 0; bits &= bits - 1) ++count;
  return count;
}

// Of a set that is not empty.
constexpr int first_slot(unsigned set) {
  int slot = 0;
  for (; (set & 1U) == 0; set >>= 1) ++slot;
  return slot;
}

template <class V>
constexpr V smaller(V a, V b) {
  return a < b ? a : b;
}

// 2^-k such that `largest` times it lies in [1/2, 1): a factor that costs no digit. 1 for zero.
constexpr double unit_factor(double largest) {
  if (largest == 0) return 1;
  constexpr int kMostExponent = 1000;  // so that the factor is a normal number
  const auto exponent = static_cast<int>(std::bit_cast<std::uint64_t>(largest) >> 52 & 0x7ff);
  int k = exponent - 1022;
  if (k < -kMostExponent) k = -kMostExponent;
  if (k > kMostExponent) k = kMostExponent;
  return std::bit_cast<double>(static_cast<std::uint64_t>(1023 - k) << 52);
}

// Mean of Q over all sets of d of m slots, from the sum of A and that of its diagonal, without the prior.
constexpr double mean_cost(double all, double trace, int m, int d) {
  const double single = static_cast<double>(d) / m;
  const double pair = m > 1 ? single * (d - 1) / (m - 1) : 0;
  return single * trace + pair * (all - trace);
}

// The subsets of eight slots by size: those of size k are sets[first_of_size[k]] up to sets[first_of_size[k + 1]]. In
// each size those of fewer slots come first.
struct SubsetsOfEight {
  std::uint8_t sets[256] = {};
  int first_of_size[10] = {};

  constexpr SubsetsOfEight() {
    int count = 0;
    for (int size = 0; size <= 8; ++size) {
      first_of_size[size] = count;
      for (unsigned set = 0; set < 256; ++set) {
        if (bit_count(set) == size) sets[count++] = static_cast<std::uint8_t>(set);
      }
    }
    first_of_size[9] = count;
  }
};
constexpr SubsetsOfEight kSubsetsOfEight;

template <int... kIndex>
struct Indices {};
template <int kCount, int... kIndex>
struct MakeIndices : MakeIndices<kCount - 1, kCount - 1, kIndex...> {};
template <int... kIndex>
struct MakeIndices<0, kIndex...> {
  using Type = Indices<kIndex...>;
};

// Entry `lane` of a register, or of a single float.
template <class V>
float lane_of(const V& v, int lane) {
  if constexpr (sizeof(V) == sizeof(float)) {
    return v;
  } else {
    return v[lane];
  }
}

// Whether the set a comes before b, of the same size, in the order of their sorted slots.
constexpr bool lexicographically_before(unsigned a, unsigned b) {
  const unsigned differ = a ^ b;
  return (a & differ & (~differ + 1)) != 0;
}

// One group in double.
struct Group {
  const double* u;       // m weights
  const double* moment;  // m x m, row by row
  const double* prior;   // m terms of the diagonal
  int m;

  constexpr double diagonal(int i) const { return u[i] * u[i] * moment[i * m + i] + prior[i]; }

  // The slots that cost nothing, if there are enough of them: the first d. A is positive semidefinite, so no set costs
  // less; and in a group of zeros all sets would be equally good, and all be compared in double.
  constexpr bool free_slots(int d, unsigned& dropped) const {
    dropped = 0;
    for (int i = 0; i < m && d > 0; ++i) {
      if (diagonal(i) != 0) continue;
      dropped |= 1U << i;
      --d;
    }
    return d == 0;
  }

  // Q(D), always summed in the same order.
  constexpr double cost(unsigned dropped) const {
    double total = 0;
    for (int i = 0; i < m; ++i) {
      if ((dropped >> i & 1U) == 0) continue;
      double pairs = 0;
      for (int j = i + 1; j < m; ++j) {
        if ((dropped >> j & 1U) != 0) pairs += moment[i * m + j] * u[j];
      }
      total += u[i] * (moment[i * m + i] * u[i] + 2 * pairs) + prior[i];
    }
    return total;
  }
};

// The best of the sets it was shown.
struct BestSet {
  double cost = 0;
  unsigned set = 0;
  bool any = false;

  constexpr void see(double other_cost, unsigned other) {
    if (any && !(other_cost < cost || (other_cost == cost && lexicographically_before(other, set)))) return;
    cost = other_cost;
    set = other;
    any = true;
  }
};

// The second half, of kSecond slots: its quarters, and the step that all the time is spent in. Loops are unrolled: one
// addition and one comparison for each D2, and nothing else.
template <int kSecond>
struct SecondHalf {
  static constexpr int kLower = kSecond / 2;
  static constexpr int kUpper = kSecond - kLower;

  // Sums of the terms over all subsets of a quarter.
  template <int kCount, class V>
  static constexpr void tabulate(const V* terms, V* table) {
    table[0] = V{};
    for (int i = 0; i < kCount; ++i) {
      for (int e = 0; e < 1 << i; ++e) table[(1 << i) + e] = table[e] + terms[i];
    }
  }

  // Least cost over the D2 of `size` slots: second[D2] + lower[its lower quarter] + upper[its upper quarter].
  template <int kSize = kSecond, class V>
  static constexpr V least(int size, const V* second, const V* lower, const V* upper, V worst) {
    if (size == kSize) {
      V best = worst;
      over_upper<kSize>(best, second, lower, upper, worst, typename MakeIndices<1 << kUpper>::Type{});
      return best;
    }
    if constexpr (kSize > 0) {
      return least<kSize - 1>(size, second, lower, upper, worst);
    } else {
      return worst;
    }
  }

 private:
  template <int kSize, class V, int... kHigh>
  static constexpr void over_upper(V& best, const V* second, const V* lower, const V* upper, V worst,
                                   Indices<kHigh...>) {
    (take_upper<kSize, kHigh>(best, second, lower, upper, worst), ...);
  }

  template <int kSize, int kHigh, class V>
  static constexpr void take_upper(V& best, const V* second, const V* lower, const V* upper, V worst) {
    constexpr int kLeft = kSize - bit_count(kHigh);
    if constexpr (kLeft >= 0 && kLeft <= kLower) {
      V inner = worst;
      over_lower<kLeft>(inner, second + (kHigh << kLower), lower, typename MakeIndices<1 << kLower>::Type{});
      best = smaller(best, inner + upper[kHigh]);
    }
  }

  template <int kSize, class V, int... kLow>
  static constexpr void over_lower(V& best, const V* second, const V* lower, Indices<kLow...>) {
    (take_lower<kSize, kLow>(best, second, lower), ...);
  }

  template <int kSize, int kLow, class V>
  static constexpr void take_lower(V& best, const V* second, const V* lower) {
    if constexpr (bit_count(kLow) == kSize) best = smaller(best, second[kLow] + lower[kLow]);
  }
};

// The search on the host, for groups whose second half has kSecond slots.
template <class V, int kSecond>
class TableSearch {
 public:
  // a: the upper triangle of A, entries off the diagonal doubled. Returns the least cost of dropping d of the m slots;
  // `worst` is more than any.
  V run(const V* a, int m, int d, V worst) {
    const int first = m - kSecond;
    tabulate(a, m, 0, first, least_);
    tabulate(a, m, first, kSecond, second_);
    for (int j = 0; j < kSecond; ++j) cross_[first][j] = V{};
    V best = worst;
    for (unsigned d1 = 0; d1 < 1U << first; ++d1) {
      // cross_[z] belongs to the latest D1 whose first slot is z. Without its first slot, d1 is the latest of its kind.
      int slot = first;
      if (d1 != 0) {
        slot = first_slot(d1);
        const unsigned parent = d1 & (d1 - 1);
        const int from = parent == 0 ? first : first_slot(parent);
        const V* pairs = a + triangle(m, slot, first);
        for (int j = 0; j < kSecond; ++j) cross_[slot][j] = cross_[from][j] + pairs[j];
      }
      const int size = d - bit_count(d1);
      if (size < 0 || size > kSecond) {
        least_[d1] = worst;
        continue;
      }
      Half::template tabulate<Half::kLower>(cross_[slot], lower_);
      Half::template tabulate<Half::kUpper>(cross_[slot] + Half::kLower, upper_);
      least_[d1] = least_[d1] + Half::least(size, second_, lower_, upper_, worst);
      best = smaller(best, least_[d1]);
    }
    return best;
  }

  // After run(): the best set of group `lane`, whose least cost in float is `best` and whose costs there are wrong by
  // `error` at most.
  unsigned settle(const V* a, int d, int lane, float best, float error, const Group& group) const {
    const int first = group.m - kSecond;
    const float limit = best + 2 * error;
    BestSet winner;
    for (unsigned d1 = 0; d1 < 1U << first; ++d1) {
      const int size = d - bit_count(d1);
      if (size < 0 || size > kSecond || !(lane_of(least_[d1], lane) <= limit)) continue;
      see_second(a, first, d, d1, lane, limit - lane_of(least_[d1], lane) + 2 * error, group, winner);
    }
    return winner.set;
  }

 private:
  using Half = SecondHalf<kSecond>;
  static constexpr int kMostFirst = kSecond;

  // Costs of all subsets of the slots begin .. begin + size.
  void tabulate(const V* a, int m, int begin, int size, V* table) {
    table[0] = V{};
    for (int i = 0; i < size; ++i) {
      // Subsets whose last slot is i.
      sums_[0] = a[triangle(m, begin + i, begin + i)];
      for (int j = 0; j < i; ++j) {
        const V pair = a[triangle(m, begin + j, begin + i)];
        for (int e = 0; e < 1 << j; ++e) sums_[(1 << j) + e] = sums_[e] + pair;
      }
      for (int e = 0; e < 1 << i; ++e) table[(1 << i) + e] = table[e] + sums_[e];
    }
  }

  // Shows every D1 + D2 that costs at most `slack` more than the best of this D1.
  void see_second(const V* a, int first, int d, unsigned d1, int lane, float slack, const Group& group,
                  BestSet& winner) const {
    float terms[kSecond];
    for (int j = 0; j < kSecond; ++j) {
      terms[j] = 0;
      for (int i = 0; i < first; ++i) {
        if ((d1 >> i & 1U) != 0) terms[j] += lane_of(a[triangle(group.m, i, first + j)], lane);
      }
    }
    float costs[1 << kSecond];
    costs[0] = 0;
    for (int j = 0; j < kSecond; ++j) {
      for (int e = 0; e < 1 << j; ++e) costs[(1 << j) + e] = costs[e] + terms[j];
    }
    const int size = d - bit_count(d1);
    const int begin = kSubsetsOfEight.first_of_size[size];
    int end = begin;
    float least_cost = 0;
    for (; end < kSubsetsOfEight.first_of_size[size + 1]; ++end) {
      const int d2 = kSubsetsOfEight.sets[end];
      if (d2 >> kSecond != 0) break;
      costs[d2] += lane_of(second_[d2], lane);
      if (end == begin || costs[d2] < least_cost) least_cost = costs[d2];
    }
    for (int k = begin; k < end; ++k) {
      const unsigned d2 = kSubsetsOfEight.sets[k];
      if (!(costs[d2] <= least_cost + slack)) continue;
      const unsigned set = d1 | d2 << first;
      winner.see(group.cost(set), set);
    }
  }

  V least_[1 << kMostFirst];  // Q1, and in the end the least cost for each D1; `worst` where no D has this D1
  V second_[1 << kSecond];
  V sums_[1 << kSecond];
  V cross_[kMostFirst + 1][kSecond];
  V lower_[1 << Half::kLower];
  V upper_[1 << Half::kUpper];
};

}  // namespace

}  // namespace mpfast::masks
