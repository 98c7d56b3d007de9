// Inner loops of the masks, over runs of consecutive entries. One table of them per instruction set and storage type.
#pragma once

#include <cstdint>

#include "core/types.hpp"

namespace mpfast::cpu {

// The keys (masks/select.hpp) that a counting pass looks at: low <= key <= high, in buckets of 2^shift keys.
struct KeyWindow {
  std::int64_t low = 0;
  std::int64_t high = 0;
  int shift = 0;

  std::int64_t buckets() const { return ((high - low) >> shift) + 1; }
};

// What one thread counts during a pass.
struct KeyCounts {
  index_t below = 0;                   // keys < window.low
  std::uint64_t* histogram = nullptr;  // of the keys inside the window; or, in its place,
  std::int64_t* collected = nullptr;   // the keys themselves, with room for as many as there are entries
  index_t collected_size = 0;
  bool nonfinite = false;  // an infinity or NaN was seen; the counts are then meaningless
};

struct MaskKernels {
  // Adds `count` entries to the counts. Reads each entry once; the only memory written is the histogram.
  using CountKeys = void (*)(const void* entries, index_t count, double scale, const KeyWindow&, KeyCounts&);

  // keep[i] = key_i >= cut; returns how many keys equal `cut`.
  using WriteMask = index_t (*)(const void* entries, index_t count, double scale, std::int64_t cut, std::uint8_t* keep);

  // keep[i] = whether entry i is among the n largest of its group of m; count is a multiple of m <= kLargestGroup.
  // Returns false when an entry was not finite.
  using KeepLargest = bool (*)(const void* entries, index_t count, int n, int m, std::uint8_t* keep);

  // The narrow ones compute scores in float (null for entries that need double), the wide ones in double.
  CountKeys count_keys_narrow;
  CountKeys count_keys_wide;
  WriteMask write_mask_narrow;
  WriteMask write_mask_wide;
  KeepLargest keep_largest;
};

template <class Isa>
const MaskKernels& mask_kernels(DType dtype);

// Those of the instruction set in use.
const MaskKernels& active_mask_kernels(DType dtype);

}  // namespace mpfast::cpu
