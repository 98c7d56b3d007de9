// Compiled once per instruction set (see CMakeLists.txt). Everything but the table has internal linkage: a function
// compiled for AVX-512 must never be the copy the linker keeps for the baseline code.
//
// All of these stream the weights once from memory and are meant to run at its speed.
#include "cpu/masks/mask_kernels.hpp"

#include <type_traits>

#include "cpu/machine/dispatch.hpp"
#include "cpu/machine/simd.hpp"
#include "masks/n_m.hpp"
#include "masks/select.hpp"

namespace mpfast::cpu::MPFAST_ISA {

namespace {

using masks::Score;
using masks::Stored;

// Keys of one chunk stay in L1 between the loops over them.
constexpr int kChunk = 512;

// Returns whether every entry is finite.
template <DType dtype, class Key, bool kScaled>
[[gnu::always_inline]] inline bool make_keys(const typename Stored<dtype>::Bits* entries, int count,
                                             typename Score<Key>::Real scale, Key* keys) {
  using Bits = typename Stored<dtype>::Bits;
  Bits largest = 0;
  for (int i = 0; i < count; ++i) {
    const Bits magnitude = masks::magnitude<dtype>(entries[i]);
    largest = largest > magnitude ? largest : magnitude;
    keys[i] = masks::score_key<dtype, Key, kScaled>(magnitude, scale);
  }
  return largest < Stored<dtype>::kInfinity;
}

// hit(key) is called for each key inside, in order. Of a well-chosen window most registers hold none: those that do are
// noted without a branch, and gone through afterwards. count is a multiple of the keys of a register, at most kChunk.
template <class Key, class Hit>
[[gnu::always_inline]] inline index_t count_chunk(const Key* keys, int count, Key low, Key high, const Hit& hit) {
  using V = Vec<Key>;
  struct Held {
    int start;
    unsigned lanes;
  };
  Held held[kChunk / kLanes<Key>];
  int size = 0;
  const V first = V{} + low;
  const V last = V{} + high;
  V below{};
  for (int i = 0; i < count; i += kLanes<Key>) {
    V some;
    __builtin_memcpy(&some, keys + i, sizeof some);
    const auto is_below = some < first;
    below -= (V)is_below;
    held[size] = {i, lanes_that_hold<Key>((V)(~is_below & (some <= last)))};
    size += held[size].lanes != 0 ? 1 : 0;
  }
  for (int k = 0; k < size; ++k) {
    for (unsigned lanes = held[k].lanes; lanes != 0; lanes &= lanes - 1) {
      hit(keys[held[k].start + __builtin_ctz(lanes)]);
    }
  }
  index_t total = 0;
  for (int lane = 0; lane < kLanes<Key>; ++lane) total += below[lane];
  return total;
}

template <DType dtype, class Key, bool kScaled, class Hit>
[[gnu::always_inline]] inline void count_entries(const typename Stored<dtype>::Bits* entries, index_t count,
                                                 double scale, const KeyWindow& window, KeyCounts& counts,
                                                 const Hit& hit) {
  const auto narrow_scale = masks::score_scale<Key>(scale);
  const Key low = static_cast<Key>(window.low);
  const Key high = static_cast<Key>(window.high);
  alignas(64) Key keys[kChunk];
  bool finite = true;
  for (index_t start = 0; start < count; start += kChunk) {
    const int size = count - start < kChunk ? static_cast<int>(count - start) : kChunk;
    finite &= make_keys<dtype, Key, kScaled>(entries + start, size, narrow_scale, keys);
    const int whole = size / kLanes<Key> * kLanes<Key>;
    counts.below += count_chunk(keys, whole, low, high, hit);
    for (int i = whole; i < size; ++i) {
      if (keys[i] < low) ++counts.below;
      if (keys[i] >= low && keys[i] <= high) hit(keys[i]);
    }
  }
  if (!finite) counts.nonfinite = true;
}

template <DType dtype, class Key, bool kScaled>
void count_all(const typename Stored<dtype>::Bits* entries, index_t count, double scale, const KeyWindow& window,
               KeyCounts& counts) {
  if (counts.collected != nullptr) {
    std::int64_t* next = counts.collected + counts.collected_size;
    count_entries<dtype, Key, kScaled>(entries, count, scale, window, counts, [&](Key key) { *next++ = key; });
    counts.collected_size = next - counts.collected;
  } else {
    std::uint64_t* const histogram = counts.histogram;
    const Key low = static_cast<Key>(window.low);
    const int shift = window.shift;
    count_entries<dtype, Key, kScaled>(entries, count, scale, window, counts,
                                       [&](Key key) { ++histogram[(key - low) >> shift]; });
  }
}

template <DType dtype, class Key>
void count_keys(const void* entries, index_t count, double scale, const KeyWindow& window, KeyCounts& counts) {
  const auto* bits = static_cast<const typename Stored<dtype>::Bits*>(entries);
  if (scale == 1) {
    count_all<dtype, Key, false>(bits, count, scale, window, counts);
  } else {
    count_all<dtype, Key, true>(bits, count, scale, window, counts);
  }
}

template <DType dtype, class Key, bool kScaled>
index_t write_all(const typename Stored<dtype>::Bits* entries, index_t count, double scale, std::int64_t wide_cut,
                  std::uint8_t* keep) {
  const auto narrow_scale = masks::score_scale<Key>(scale);
  const Key cut = static_cast<Key>(wide_cut);
  alignas(64) Key keys[kChunk];
  index_t ties = 0;
  for (index_t start = 0; start < count; start += kChunk) {
    const int size = count - start < kChunk ? static_cast<int>(count - start) : kChunk;
    make_keys<dtype, Key, kScaled>(entries + start, size, narrow_scale, keys);
    Key equal = 0;
    for (int i = 0; i < size; ++i) {
      equal = static_cast<Key>(equal + (keys[i] == cut ? 1 : 0));
      keep[start + i] = keys[i] >= cut ? 1 : 0;
    }
    ties += equal;
  }
  return ties;
}

template <DType dtype, class Key>
index_t write_mask(const void* entries, index_t count, double scale, std::int64_t cut, std::uint8_t* keep) {
  const auto* bits = static_cast<const typename Stored<dtype>::Bits*>(entries);
  return scale == 1 ? write_all<dtype, Key, false>(bits, count, scale, cut, keep)
                    : write_all<dtype, Key, true>(bits, count, scale, cut, keep);
}

// ---- n of m ---------------------------------------------------------------------------------------------------------

template <int... kIndex>
struct Lanes {};
template <int kCount, int... kIndex>
struct MakeLanes : MakeLanes<kCount - 1, kCount - 1, kIndex...> {};
template <int... kIndex>
struct MakeLanes<0, kIndex...> {
  using Type = Lanes<kIndex...>;
};

// A register holds lanes / m whole groups. Each entry meets the other m - 1 of its group by rotating the groups: lane j
// of the r-th rotation holds entry (j + r) mod m.
template <class V, int m, int r, int... kIndex>
[[gnu::always_inline]] inline V rotated(V v, Lanes<kIndex...>) {
  return __builtin_shufflevector(v, v, (kIndex / m * m + (kIndex + r) % m)...);
}

// 1 in the lanes whose partner comes at a lower index, and therefore is ahead when the two are equal.
template <class V, int m, int r, int... kIndex>
[[gnu::always_inline]] inline V partner_is_earlier(Lanes<kIndex...>) {
  return V{((kIndex + r) % m < kIndex % m ? 1 : 0)...};
}

// Minus the number of entries of the group that precede each entry. precedes(i, j) for i < j is key_i <= key_j, that is
// key_i < key_j + 1: finite keys leave room for the increment. V is unsigned, so that it wraps for others; comparisons
// are of signed numbers (S), one instruction everywhere, since magnitudes have no sign bit.
template <class V, class S, int m, int r, class AllLanes>
[[gnu::always_inline]] inline V minus_rank(V keys) {
  if constexpr (r == m) {
    return V{};
  } else {
    const V partner = rotated<V, m, r>(keys, AllLanes{});
    const V bound = keys + partner_is_earlier<V, m, r>(AllLanes{});
    return (V)((S)partner < (S)bound) + minus_rank<V, S, m, r + 1, AllLanes>(keys);
  }
}

// Any group size: kGroups groups side by side, one per lane, transposed through L1.
template <DType dtype>
bool keep_largest_any(const typename Stored<dtype>::Bits* entries, index_t count, int n, int m, std::uint8_t* keep) {
  using Bits = typename Stored<dtype>::Bits;
  constexpr int kGroups = kLanes<Bits>;
  alignas(64) Bits keys[masks::kLargestGroup][kGroups];
  alignas(64) Bits rank[masks::kLargestGroup][kGroups];
  const Bits pruned = static_cast<Bits>(m - n);
  Bits largest = 0;
  for (index_t start = 0; start < count; start += static_cast<index_t>(kGroups) * m) {
    const index_t left = (count - start) / m;
    const int groups = left < kGroups ? static_cast<int>(left) : kGroups;
    for (int lane = 0; lane < kGroups; ++lane) {
      const auto* group = entries + start + static_cast<index_t>(lane < groups ? lane : 0) * m;
      for (int j = 0; j < m; ++j) {
        keys[j][lane] = masks::magnitude<dtype>(group[j]);
        largest = largest > keys[j][lane] ? largest : keys[j][lane];
      }
    }
    masks::rank_groups<kGroups>(keys, m, rank);
    for (int lane = 0; lane < groups; ++lane) {
      for (int j = 0; j < m; ++j) keep[start + static_cast<index_t>(lane) * m + j] = rank[j][lane] >= pruned ? 1 : 0;
    }
  }
  return largest < Stored<dtype>::kInfinity;
}

// m (a power of two) divides the lanes of a register: everything happens in registers, m - 1 rotations per register.
template <DType dtype, int m>
bool keep_largest_in_register(const typename Stored<dtype>::Bits* entries, index_t count, int n, std::uint8_t* keep) {
  using Bits = typename Stored<dtype>::Bits;
  constexpr int L = kLanes<Bits>;
  using V = Vec<Bits>;
  using S = Vec<std::make_signed_t<Bits>>;
  // Every step writes a register of bytes, so that the narrowing of the flags fills whole registers.
  constexpr int kSteps = static_cast<int>(sizeof(Bits));
  using AllLanes = typename MakeLanes<L>::Type;
  const S bound = S{} - static_cast<std::make_signed_t<Bits>>(m - n);
  S largest = {};
  index_t i = 0;
  for (; i + L * kSteps <= count; i += L * kSteps) {
    alignas(64) Bits flags[L * kSteps];
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step) {
      V keys;
      __builtin_memcpy(&keys, entries + i + step * L, sizeof keys);
      keys &= Stored<dtype>::kMagnitude;
      largest = largest > (S)keys ? largest : (S)keys;
      const S flag = (S)minus_rank<V, S, m, 1, AllLanes>(keys) <= bound;
      __builtin_memcpy(flags + step * L, &flag, sizeof flag);
    }
    for (int k = 0; k < L * kSteps; ++k) keep[i + k] = static_cast<std::uint8_t>(flags[k] & 1);
  }
  bool finite = keep_largest_any<dtype>(entries + i, count - i, n, m, keep + i);
  for (int lane = 0; lane < L; ++lane) finite &= static_cast<Bits>(largest[lane]) < Stored<dtype>::kInfinity;
  return finite;
}

template <DType dtype, int m>
constexpr bool fits_register = kLanes<typename Stored<dtype>::Bits> % m == 0;

template <DType dtype>
bool keep_largest(const void* entries, index_t count, int n, int m, std::uint8_t* keep) {
  const auto* bits = static_cast<const typename Stored<dtype>::Bits*>(entries);
  if constexpr (fits_register<dtype, 2>) {
    if (m == 2) return keep_largest_in_register<dtype, 2>(bits, count, n, keep);
  }
  if constexpr (fits_register<dtype, 4>) {
    if (m == 4) return keep_largest_in_register<dtype, 4>(bits, count, n, keep);
  }
  if constexpr (fits_register<dtype, 8>) {
    if (m == 8) return keep_largest_in_register<dtype, 8>(bits, count, n, keep);
  }
  if constexpr (fits_register<dtype, 16>) {
    if (m == 16) return keep_largest_in_register<dtype, 16>(bits, count, n, keep);
  }
  return keep_largest_any<dtype>(bits, count, n, m, keep);
}

using Narrow = std::int32_t;
using Wide = std::int64_t;

// Without the narrow kernels where entries need double.
template <DType dtype>
constexpr MaskKernels kernels_of() {
  MaskKernels kernels{};
  if constexpr (!kNeedsDouble<dtype>) {
    kernels.count_keys_narrow = count_keys<dtype, Narrow>;
    kernels.write_mask_narrow = write_mask<dtype, Narrow>;
  }
  kernels.count_keys_wide = count_keys<dtype, Wide>;
  kernels.write_mask_wide = write_mask<dtype, Wide>;
  kernels.keep_largest = keep_largest<dtype>;
  return kernels;
}

template <DType dtype>
constexpr MaskKernels kKernels = kernels_of<dtype>();

}  // namespace

}  // namespace mpfast::cpu::MPFAST_ISA

namespace mpfast::cpu {

template <>
const MaskKernels& mask_kernels<isa::MPFAST_ISA>(DType dtype) {
  return *dispatch(dtype, []<DType each>() { return &MPFAST_ISA::kKernels<each>; });
}

}  // namespace mpfast::cpu
