#include "core/dtype.hpp"
#include "cuda/machine/platform.hpp"
#include "cuda/masks/mask_kernels.hpp"
#include "masks/n_m.hpp"
#include "masks/select.hpp"

namespace mpfast::cuda {

namespace {

constexpr unsigned kThreads = 256;
constexpr int kDigits = 1 << kDigitBits;

// Entries in row-major order. Where memory allows it a matrix is one long row, and no index is divided.
template <DType dtype>
struct Entries {
  using Bits = typename masks::Stored<dtype>::Bits;

  const Bits* data;
  index_t size;
  index_t cols;
  index_t row_stride;
  index_t col_stride;
  bool one_row;

  explicit Entries(const MatrixView& w)
      : data(static_cast<const Bits*>(w.data)),
        size(w.rows * w.cols),
        cols(w.cols),
        row_stride(w.row_stride),
        col_stride(w.col_stride),
        one_row(w.rows == 1 || w.row_stride == w.cols * w.col_stride) {}

  __device__ Bits operator[](index_t i) const {
    return data[one_row ? i * col_stride : i / cols * row_stride + i % cols * col_stride];
  }
};

// function(row-major index) for this thread's share of the block's chunk; neighbours take neighbours.
template <class Function>
__device__ void for_each_index(index_t size, const Function& function) {
  const index_t begin = blockIdx.x * kMaskChunk;
  const index_t end = begin + kMaskChunk < size ? begin + kMaskChunk : size;
#pragma unroll 4
  for (index_t i = begin + threadIdx.x; i < end; i += blockDim.x) function(i);
}

template <DType dtype, class Key>
__device__ Key key_of(typename masks::Stored<dtype>::Bits bits, double scale) {
  return masks::score_key<dtype, Key, true>(masks::magnitude<dtype>(bits), masks::score_scale<Key>(scale));
}

template <DType dtype, class Key>
__global__ void count_kernel(Entries<dtype> entries, double scale, KeyDigit digit, Counter* histogram,
                             std::uint32_t* nonfinite) {
  auto* const counts = shared_memory<std::uint32_t>();
  for (int d = static_cast<int>(threadIdx.x); d < kDigits; d += static_cast<int>(blockDim.x)) counts[d] = 0;
  __syncthreads();
  const auto prefix = static_cast<Key>(digit.prefix >> digit.shift >> kDigitBits);
  for_each_index(entries.size, [&](index_t i) {
    const auto bits = entries[i];
    if (masks::magnitude<dtype>(bits) >= masks::Stored<dtype>::kInfinity) {
      *nonfinite = 1;  // whoever writes it, writes the same
      return;
    }
    const Key digits = key_of<dtype, Key>(bits, scale) >> digit.shift;
    if (digits >> kDigitBits == prefix) atomicAdd(&counts[digits & (kDigits - 1)], 1U);
  });
  __syncthreads();
  for (int d = static_cast<int>(threadIdx.x); d < kDigits; d += static_cast<int>(blockDim.x)) {
    if (counts[d] > 0) atomicAdd(&histogram[d], Counter{counts[d]});
  }
}

template <DType dtype, class Key>
__global__ void write_kernel(Entries<dtype> entries, double scale, std::int64_t cut, std::uint8_t* keep,
                             std::uint32_t* ties) {
  auto* const count = shared_memory<std::uint32_t>();
  if (threadIdx.x == 0) *count = 0;
  __syncthreads();
  std::uint32_t mine = 0;
  for_each_index(entries.size, [&](index_t i) {
    const Key key = key_of<dtype, Key>(entries[i], scale);
    keep[i] = key >= static_cast<Key>(cut) ? 1 : 0;
    mine += key == static_cast<Key>(cut) ? 1 : 0;
  });
  if (mine > 0) atomicAdd(count, mine);
  __syncthreads();
  if (threadIdx.x == 0) ties[blockIdx.x] = *count;
}

// Each thread takes consecutive entries, so that the ties before its own are those of the threads before it.
template <DType dtype, class Key>
__global__ void ties_kernel(Entries<dtype> entries, double scale, std::int64_t cut, const std::uint32_t* pruned,
                            std::uint8_t* keep) {
  auto* const counts = shared_memory<std::uint32_t>();
  const index_t share = kMaskChunk / blockDim.x;
  const index_t begin = blockIdx.x * kMaskChunk + threadIdx.x * share;
  const index_t end = begin + share < entries.size ? begin + share : entries.size;
  const std::uint32_t budget = pruned[blockIdx.x];
  const auto is_tie = [&](index_t i) { return key_of<dtype, Key>(entries[i], scale) == static_cast<Key>(cut); };
  std::uint32_t mine = 0;
  if (budget > 0) {
    for (index_t i = begin; i < end; ++i) mine += is_tie(i) ? 1 : 0;
  }
  counts[threadIdx.x] = mine;
  __syncthreads();
  if (mine == 0) return;
  std::uint32_t rank = 0;
  for (unsigned t = 0; t < threadIdx.x; ++t) rank += counts[t];
  for (index_t i = begin; i < end && rank < budget; ++i) {
    if (!is_tie(i)) continue;
    keep[i] = 0;
    ++rank;
  }
}

// One group of kGroup entries per thread, in registers.
template <DType dtype, int kGroup>
__global__ void groups_kernel(Entries<dtype> entries, int n, std::uint8_t* keep, std::uint32_t* nonfinite) {
  using Bits = typename masks::Stored<dtype>::Bits;
  constexpr int kAlignment = sizeof(Bits) * kGroup > 16 ? 16 : sizeof(Bits) * kGroup;
  struct alignas(kAlignment) Group {
    Bits entries[kGroup];
  };
  struct alignas(kGroup) Mask {
    std::uint8_t kept[kGroup];
  };
  const index_t group = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (group * kGroup >= entries.size) return;
  Group values;
  const bool aligned = reinterpret_cast<std::uintptr_t>(entries.data) % kAlignment == 0;
  if (entries.one_row && entries.col_stride == 1 && aligned) {
    values = *reinterpret_cast<const Group*>(entries.data + group * kGroup);
  } else {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) values.entries[i] = entries[group * kGroup + i];
  }
  bool finite = true;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    values.entries[i] = masks::magnitude<dtype>(values.entries[i]);
    finite = finite && values.entries[i] < masks::Stored<dtype>::kInfinity;
  }
  if (!finite) *nonfinite = 1;
  Mask mask;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    int rank = 0;
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (j != i) rank += masks::precedes(values.entries[j], j, values.entries[i], i) ? 1 : 0;
    }
    mask.kept[i] = rank >= kGroup - n ? 1 : 0;
  }
  if (reinterpret_cast<std::uintptr_t>(keep) % kGroup == 0) {
    *reinterpret_cast<Mask*>(keep + group * kGroup) = mask;
  } else {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) keep[group * kGroup + i] = mask.kept[i];
  }
}

// Any group: a thread per entry, which meets the others of its group in the cache.
template <DType dtype>
__global__ void any_groups_kernel(Entries<dtype> entries, int n, int m, std::uint8_t* keep, std::uint32_t* nonfinite) {
  const index_t at = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= entries.size) return;
  const index_t first = at / m * m;
  const auto own = static_cast<int>(at - first);
  const auto mine = masks::magnitude<dtype>(entries[at]);
  if (mine >= masks::Stored<dtype>::kInfinity) *nonfinite = 1;
  int rank = 0;
  for (int j = 0; j < m; ++j) {
    if (j != own) rank += masks::precedes(masks::magnitude<dtype>(entries[first + j]), j, mine, own) ? 1 : 0;
  }
  keep[at] = rank >= m - n ? 1 : 0;
}

template <DType dtype>
__global__ void nonfinite_kernel(Entries<dtype> entries, ChunkNonFinite* found) {
  auto* const parts = shared_memory<ChunkNonFinite>();
  ChunkNonFinite mine;
  for_each_index(entries.size, [&](index_t i) {
    if (masks::magnitude<dtype>(entries[i]) < masks::Stored<dtype>::kInfinity) return;
    if (mine.count == 0) mine.first = i;  // a thread goes through its entries in order
    ++mine.count;
  });
  parts[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned t = 1; t < blockDim.x; ++t) {
    const ChunkNonFinite& part = parts[t];
    if (part.count == 0) continue;
    if (mine.count == 0 || part.first < mine.first) mine.first = part.first;
    mine.count += part.count;
  }
  found[blockIdx.x] = mine;
}

Grid chunk_grid(const MatrixView& w, std::size_t shared_bytes) {
  return {.x = static_cast<unsigned>(mask_chunks(w)), .threads = kThreads, .shared_bytes = shared_bytes};
}

// function.operator()<dtype, Key>(entries)
template <class Function>
void dispatch_keys(const MatrixView& w, bool wide, const Function& function) {
  dispatch(w.dtype, [&]<DType dtype>() {
    if constexpr (!kNeedsDouble<dtype>) {
      if (!wide) return function.template operator()<dtype, std::int32_t>(Entries<dtype>(w));
    }
    function.template operator()<dtype, std::int64_t>(Entries<dtype>(w));
  });
}

}  // namespace

void count_digits(Stream stream, const ScoredMatrix& matrix, bool wide, KeyDigit digit, Counter* histogram,
                  std::uint32_t* nonfinite) {
  const Grid grid = chunk_grid(matrix.entries, kDigits * sizeof(std::uint32_t));
  dispatch_keys(matrix.entries, wide, [&]<DType dtype, class Key>(const Entries<dtype>& entries) {
    launch(stream, grid, &count_kernel<dtype, Key>, entries, matrix.scale, digit, histogram, nonfinite);
  });
}

void write_mask(Stream stream, const ScoredMatrix& matrix, bool wide, std::int64_t cut, std::uint32_t* ties) {
  const Grid grid = chunk_grid(matrix.entries, sizeof(std::uint32_t));
  dispatch_keys(matrix.entries, wide, [&]<DType dtype, class Key>(const Entries<dtype>& entries) {
    launch(stream, grid, &write_kernel<dtype, Key>, entries, matrix.scale, cut, matrix.keep, ties);
  });
}

void prune_ties(Stream stream, const ScoredMatrix& matrix, bool wide, std::int64_t cut, const std::uint32_t* pruned) {
  const Grid grid = chunk_grid(matrix.entries, kThreads * sizeof(std::uint32_t));
  dispatch_keys(matrix.entries, wide, [&]<DType dtype, class Key>(const Entries<dtype>& entries) {
    launch(stream, grid, &ties_kernel<dtype, Key>, entries, matrix.scale, cut, pruned, matrix.keep);
  });
}

void write_groups(Stream stream, const ScoredMatrix& matrix, int n, int m, std::uint32_t* nonfinite) {
  const auto blocks = [](index_t threads) { return static_cast<unsigned>((threads + kThreads - 1) / kThreads); };
  const index_t size = matrix.entries.rows * matrix.entries.cols;
  dispatch(matrix.entries.dtype, [&]<DType dtype>() {
    const Entries<dtype> entries(matrix.entries);
    const auto by_group = [&]<int kGroup>() {
      const Grid grid{.x = blocks(size / kGroup), .threads = kThreads};
      launch(stream, grid, &groups_kernel<dtype, kGroup>, entries, n, matrix.keep, nonfinite);
    };
    if (m == 2) return by_group.template operator()<2>();
    if (m == 4) return by_group.template operator()<4>();
    if (m == 8) return by_group.template operator()<8>();
    const Grid by_entry{.x = blocks(size), .threads = kThreads};
    launch(stream, by_entry, &any_groups_kernel<dtype>, entries, n, m, matrix.keep, nonfinite);
  });
}

void find_nonfinite(Stream stream, const MatrixView& entries, ChunkNonFinite* found) {
  const Grid grid = chunk_grid(entries, kThreads * sizeof(ChunkNonFinite));
  dispatch(entries.dtype,
           [&]<DType dtype>() { launch(stream, grid, &nonfinite_kernel<dtype>, Entries<dtype>(entries), found); });
}

}  // namespace mpfast::cuda
