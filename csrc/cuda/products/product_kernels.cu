// The kernel of a pass over B. Compiled once per storage type (MPFAST_STORAGE), so that the builds run side by side.
//
// A block of threads owns a slice of S coordinates: its part of X lies in shared memory, and in a Gram product its part
// of Z in registers, S/T coordinates of b vectors per thread. It goes through the panels of its chunk, one tile (S
// coordinates x 16 words) at a time:
//   1. the tile is copied from memory, or, since it was asked for while the last one was worked on, from the
//      second-level cache; meanwhile the other blocks of the multiprocessor work;
//   2. y = tile X: a warp takes 32 coordinates at a time, half-warps 16 each, a thread one word of every coordinate;
//      then the two halves, the warps and the blocks of the cluster are added up, each in a fixed order;
//   3. Gram product: z += tile^T y, each thread for its own coordinates, y broadcast from shared memory.
// Bytes: m n entries read once, plus b N and, per chunk, b N (Gram) or b M (plain, per slice) vector entries. Flops:
// 4 m n b (Gram) or 2 m n b (plain). Shared memory sees every word three times: one store, and one load in steps 2 and
// 3 each. Coordinates or panel rows may be the contiguous ones: only the order in which threads fetch the tile differs.
// No sum depends on timing, and no atomics are used.
#include <cstdint>

#include "core/dtype.hpp"
#include "cuda/machine/platform.hpp"
#include "cuda/products/product_kernels.hpp"
#include "cuda/products/product_layout.hpp"
#include "cuda/products/tile_energies.hpp"

namespace mpfast::cuda {

namespace {

// kCount values that are read at once.
template <class Real, int kCount>
struct alignas(sizeof(Real) * kCount > 16 ? 16 : sizeof(Real) * kCount) Pack {
  Real values[kCount];
};

template <DType storage>
struct Tile {
  using Word = TileWord<storage>;
  using Bits = typename Entry<storage>::Bits;
  static constexpr int kPerWord = rows_per_word(storage);
  static_assert(kPerWord <= 2, "Fetch brings words of one or two entries");
  static constexpr int kRows = kTileWords * kPerWord;

  static __device__ Bits entry(Word word, int e) { return static_cast<Bits>(word >> (8 * sizeof(Bits) * e)); }
};

// Brings tiles from memory into shared memory. Neighbouring threads take neighbours in memory; what lies outside B is
// zero.
template <DType storage>
class Fetch {
 public:
  using Word = TileWord<storage>;
  using Bits = typename Entry<storage>::Bits;
  static constexpr int kPerWord = Tile<storage>::kPerWord;

  // Coordinates [first, first + coordinates) of B; shared memory has room for `room` of them, a power of two.
  __device__ Fetch(const MatrixView& b, index_t first, int coordinates, int room)
      : b_(b),
        first_(first),
        coordinates_(coordinates),
        room_(room),
        by_rows_(b.col_stride != 1 && (b.row_stride == 1 || b.row_stride == -1)) {
    // 16-bit entries travel in pairs where two neighbours in memory are a whole word.
    const bool aligned = reinterpret_cast<std::uintptr_t>(b.data) % sizeof(Word) == 0;
    if (kPerWord == 1 || (b.row_stride == 1 && b.col_stride % 2 == 0 && aligned)) {
      way_ = Way::whole_words;
    } else if (b.col_stride == 1 && b.row_stride % 2 == 0 && first % 2 == 0 && aligned) {
      way_ = Way::coordinate_pairs;
    }
  }

  // Begins to load the tile that starts at row0; it is there after wait_for_copies() and a barrier.
  __device__ void start(index_t row0, Word* tile) const {
    if (way_ == Way::coordinate_pairs) return start_pairs(row0, tile);
    const auto rows = static_cast<int>(row0 + kRows <= b_.rows ? kRows : b_.rows - row0);
    for_each_line(row0, [&](Line line) {
#pragma unroll 4
      for (int n = 0; n < line.words; ++n) {
        Word* const to = tile + line.coordinate * kTileStride + line.word;
        const int left = rows - line.word * kPerWord;
        if (line.coordinate >= coordinates_ || left <= 0) {
          *to = 0;
        } else if (way_ == Way::whole_words && left >= kPerWord) {
          copy_word_async(to, reinterpret_cast<const Word*>(line.from));
        } else {
          *to = gathered(line.from, left);
        }
        line.coordinate += line.coordinate_step;
        line.word += line.word_step;
        line.from += line.from_step;
      }
    });
  }

  // Asks for the tile that starts at row0 to be brought into the second-level cache.
  __device__ void prefetch(index_t row0) const {
    constexpr int kLine = 128;
    const int t = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x);
    const auto rows = static_cast<int>(row0 + kRows <= b_.rows ? kRows : b_.rows - row0);
    if (by_rows_) {
      for (int j = t; j < coordinates_; j += threads) prefetch_to_l2(address(row0, j));
    } else if (b_.col_stride == 1) {
      constexpr int kStep = kLine / static_cast<int>(sizeof(Bits));
      const int steps = (coordinates_ + kStep - 1) / kStep;
      for (int i = t; i < rows * steps; i += threads) prefetch_to_l2(address(row0 + i / steps, i % steps * kStep));
    }
  }

  // Adds up what the entries of the tile say of W.
  __device__ void add_to(BlockStats& stats, const Word* tile, index_t row0, double scale, bool swapped) const {
    const int words = room_ * kTileWords;
    for (int i = static_cast<int>(threadIdx.x); i < words; i += static_cast<int>(blockDim.x)) {
      const int j = i / kTileWords;
      const int q = i % kTileWords;
      const Word word = tile[j * kTileStride + q];
      for (int e = 0; e < kPerWord; ++e) {
        const Bits bits = Tile<storage>::entry(word, e);
        const double scaled = Entry<storage>::widen(bits) * scale;
        stats.squares += scaled * scaled;
        if ((bits & Entry<storage>::kExponent) != Entry<storage>::kExponent) continue;
        const index_t row = row0 + q * kPerWord + e;
        const index_t col = first_ + j;
        const index_t position = swapped ? col * b_.rows + row : row * b_.cols + col;
        if (stats.nonfinite == 0 || position < stats.first) stats.first = position;
        ++stats.nonfinite;
      }
    }
  }

 private:
  enum class Way { single_entries, whole_words, coordinate_pairs };
  static constexpr int kRows = Tile<storage>::kRows;

  // Words of a tile in a row: where the first one is, in the tile and in memory, and the steps to the next.
  struct Line {
    int words;
    int coordinate;
    int word;
    const Bits* from;
    int coordinate_step;
    int word_step;
    index_t from_step;
  };

  // This thread's share of a tile: along the coordinates where panel rows are contiguous in memory (so that
  // neighbouring threads take neighbouring rows), along the words of a coordinate otherwise.
  template <class Function>
  __device__ void for_each_line(index_t row0, const Function& function) const {
    const int t = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x);
    if (by_rows_) {
      const int word = t % kTileWords;
      const int first = t / kTileWords;
      const int step = threads / kTileWords;
      function(Line{room_ / step, first, word, address(row0 + word * kPerWord, first), step, 0, step * b_.col_stride});
    } else {
      for (int j = t; j < room_; j += threads) {
        function(Line{kTileWords, j, 0, address(row0, j), 0, 1, kPerWord * b_.row_stride});
      }
    }
  }

  // Words of memory hold two coordinates of a row, words of the tile two rows of a coordinate. Where there are fewer
  // pairs of coordinates than threads, several threads share a pair.
  __device__ void start_pairs(index_t row0, Word* tile) const {
    const int t = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x);
    const int across = threads < room_ / 2 ? threads : room_ / 2;
    const int sharers = threads / across;
    const auto rows = static_cast<int>(row0 + kRows <= b_.rows ? kRows : b_.rows - row0);
    for (int j = t % across * 2; j < room_; j += 2 * across) {
      const int first = t / across;
      const Bits* from = address(row0 + first * kPerWord, j);
      const int given = coordinates_ - j;
#pragma unroll 4
      for (int q = first; q < kTileWords; q += sharers) {
        const Word upper = pair_at(from, given, rows - q * kPerWord);
        const Word lower = pair_at(from + b_.row_stride, given, rows - q * kPerWord - 1);
        tile[j * kTileStride + q] = (upper & 0xffffU) | lower << 16;
        tile[(j + 1) * kTileStride + q] = upper >> 16 | (lower & 0xffff0000U);
        from += sharers * kPerWord * b_.row_stride;
      }
    }
  }

  // Two coordinates of a row, if as many are given and the row is one of the `left` rows that are.
  __device__ static Word pair_at(const Bits* from, int given, int left) {
    if (given <= 0 || left <= 0) return 0;
    return given >= 2 ? *reinterpret_cast<const Word*>(from) : Word{from[0]};
  }

  __device__ const Bits* address(index_t row, int j) const {
    return static_cast<const Bits*>(b_.data) + row * b_.row_stride + (first_ + j) * b_.col_stride;
  }

  // A word of the tile from entries one by one; `left` rows are given.
  __device__ Word gathered(const Bits* from, int left) const {
    if constexpr (kPerWord == 2) {
      return left >= 2 ? from[0] | static_cast<Word>(from[b_.row_stride]) << 16 : from[0];
    } else {
      return from[0];
    }
  }

  MatrixView b_;
  index_t first_;
  int coordinates_;
  int room_;
  bool by_rows_;
  Way way_ = Way::single_entries;
};

// The block's shared memory.
template <DType storage, class Real>
struct Shared {
  TileWord<storage>* tile;
  Real* x;           // [coordinate][width]
  Real* warp_sums;   // [warp][row][kColumnGroup]
  Real* block_sums;  // [2][row][width]
  Real* y;           // [row][width]

  __device__ Shared(int width, int threads) {
    const ProductMemory memory(storage, sizeof(Real), width, threads);
    auto* bytes = shared_memory<unsigned char>();
    tile = reinterpret_cast<TileWord<storage>*>(bytes);
    x = reinterpret_cast<Real*>(bytes + memory.x);
    warp_sums = reinterpret_cast<Real*>(bytes + memory.warp_sums);
    block_sums = reinterpret_cast<Real*>(bytes + memory.block_sums);
    y = reinterpret_cast<Real*>(bytes + memory.y);
  }
};

// sums (rows x kWidth) = tile X over the coordinates of this block. Begins and ends with the block in step.
template <DType storage, class Real, int kWidth, int kEach>
__device__ void block_product(const Shared<storage, Real>& shared, int coordinates, Real* sums) {
  using Words = Tile<storage>;
  constexpr int kPerWord = Words::kPerWord;
  constexpr int kGroup = kColumnGroup;
  constexpr int kHalf = kWarp / 2;
  const int t = static_cast<int>(threadIdx.x);
  const int warp = t / kWarp;
  const int lane = t % kWarp;
  const int q = lane % kHalf;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  for (int column = 0; column < kWidth; column += kGroup) {
    Real sum[kPerWord][kGroup] = {};
    for (int g = 0; g < kEach; ++g) {
      const int base = (warp * kEach + g) * kWarp;
      if (base >= coordinates) break;
      const int j = base + lane / kHalf * kHalf;
#pragma unroll 4
      for (int i = 0; i < kHalf; ++i) {
        const auto word = shared.tile[(j + i) * kTileStride + q];
        const auto x = *reinterpret_cast<const Pack<Real, kGroup>*>(shared.x + (j + i) * kWidth + column);
#pragma unroll
        for (int e = 0; e < kPerWord; ++e) {
          const auto entry = static_cast<Real>(Entry<storage>::widen(Words::entry(word, e)));
#pragma unroll
          for (int k = 0; k < kGroup; ++k) sum[e][k] += entry * x.values[k];
        }
      }
    }
#pragma unroll
    for (int e = 0; e < kPerWord; ++e) {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        const Real other = __shfl_xor_sync(0xffffffffU, sum[e][k], kHalf);
        if (lane < kHalf) {
          shared.warp_sums[(warp * Words::kRows + q * kPerWord + e) * kGroup + k] = sum[e][k] + other;
        }
      }
    }
    __syncthreads();
    for (int i = t; i < Words::kRows * kGroup; i += static_cast<int>(blockDim.x)) {
      Real total = 0;
      for (int w = 0; w < warps; ++w) total += shared.warp_sums[w * Words::kRows * kGroup + i];
      sums[i / kGroup * kWidth + column + i % kGroup] = total;
    }
    __syncthreads();
  }
}

// z += tile^T y for this thread's coordinates: t, t + T, ...
template <DType storage, class Real, int kWidth, int kEach>
__device__ void add_transposed_product(const Shared<storage, Real>& shared, Real (&z)[kEach][kWidth]) {
  using Words = Tile<storage>;
  using Values = Pack<Real, kColumnGroup>;
  const int t = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
#pragma unroll 1
  for (int q = 0; q < kTileWords; ++q) {
    TileWord<storage> words[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) words[i] = shared.tile[(t + threads * i) * kTileStride + q];
#pragma unroll
    for (int e = 0; e < Words::kPerWord; ++e) {
      Real entries[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) entries[i] = static_cast<Real>(Entry<storage>::widen(Words::entry(words[i], e)));
#pragma unroll
      for (int column = 0; column < kWidth; column += kColumnGroup) {
        const auto y = *reinterpret_cast<const Values*>(shared.y + (q * Words::kPerWord + e) * kWidth + column);
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
#pragma unroll
          for (int k = 0; k < kColumnGroup; ++k) z[i][column + k] += entries[i] * y.values[k];
        }
      }
    }
  }
}

// One BlockStats of the threads' own, added up in the order of the threads; `tile` is free by now.
__device__ void write_stats(const BlockStats& own, BlockStats* scratch, BlockStats* out) {
  __syncthreads();
  scratch[threadIdx.x] = own;
  __syncthreads();
  if (threadIdx.x == 0) {
    BlockStats total = scratch[0];
    for (unsigned t = 1; t < blockDim.x; ++t) {
      const BlockStats& next = scratch[t];
      total.squares += next.squares;
      if (next.nonfinite == 0) continue;
      if (total.nonfinite == 0 || next.first < total.first) total.first = next.first;
      total.nonfinite += next.nonfinite;
    }
    *out = total;
  }
}

template <DType storage, class Real, int kWidth, ProductKind kKind>
__global__ void __launch_bounds__(most_threads(sizeof(Real))) product_kernel(ProductArguments<Real> a) {
  using Words = Tile<storage>;
  constexpr int kEach = coordinates_per_thread(kWidth, sizeof(Real));
  const int t = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const unsigned blocks = kKind == ProductKind::gram ? gridDim.x : 1;
  const Shared<storage, Real> shared(kWidth, threads);
  const index_t first = blockIdx.x * a.slice;
  const index_t left = a.b.cols - first;
  const auto coordinates = static_cast<int>(left < a.slice ? left : a.slice);

  for (int i = t; i < kWidth * threads * kEach; i += threads) {
    const int c = i / (threads * kEach);
    const int j = i % (threads * kEach);
    const bool given = c < a.width && j < coordinates;
    Real entry = given ? a.x[c * a.x_stride + first + j] : Real{0};
    if (given && a.factors.given()) entry = weighted(entry, a.factors.cols[first + j]);
    shared.x[j * kWidth + c] = entry * a.x_scale;
  }

  const Fetch<storage> fetch(a.b, first, coordinates, threads * kEach);
  Real z[kKind == ProductKind::gram ? kEach : 1][kKind == ProductKind::gram ? kWidth : 1] = {};
  BlockStats stats;
  const index_t panels = (a.b.rows + Words::kRows - 1) / Words::kRows;
  const index_t begin = blockIdx.y * a.chunk_panels;
  const index_t end = begin + a.chunk_panels < panels ? begin + a.chunk_panels : panels;
  for (index_t panel = begin; panel < end; ++panel) {
    __syncthreads();  // nobody reads the last tile any more
    fetch.start(panel * Words::kRows, shared.tile);
    wait_for_copies();
    __syncthreads();
    if (panel + 1 < end) fetch.prefetch((panel + 1) * Words::kRows);
    const index_t row0 = panel * Words::kRows;
    if (a.stats != nullptr) fetch.add_to(stats, shared.tile, row0, a.entry_scale, a.swapped);
    if (a.row_energies != nullptr) {
      const TileSquares<storage, Real> squares(a, shared.tile, first, row0);
      add_energies(a, squares, first, coordinates, row0, panel == begin, reinterpret_cast<double*>(shared.warp_sums));
    }

    Real* const own = shared.block_sums + (panel - begin) % 2 * Words::kRows * kWidth;
    block_product<storage, Real, kWidth, kEach>(shared, coordinates, own);
    if constexpr (kKind == ProductKind::plain) {
      for (int i = t; i < Words::kRows * a.width; i += threads) {
        const int row = i % Words::kRows;
        const int c = i / Words::kRows;
        const index_t at = panel * Words::kRows + row;
        if (at < a.b.rows) a.partial[(blockIdx.x * index_t{a.width} + c) * a.b.rows + at] = own[row * kWidth + c];
      }
    } else {
      cluster_sync(blocks);
      for (int i = t; i < Words::kRows * kWidth; i += threads) {
        Real total = 0;
        for (unsigned rank = 0; rank < blocks; ++rank) total += *shared_memory_of(own + i, rank);
        total = total * a.y_scale[0] * a.y_scale[1];
        const index_t row = row0 + i / kWidth;
        if (a.factors.given() && row < a.b.rows) total = weighted_twice(total, a.factors.rows[row]);
        shared.y[i] = total;
      }
      __syncthreads();
      add_transposed_product<storage, Real, kWidth, kEach>(shared, z);
    }
  }
  if constexpr (kKind == ProductKind::gram) {
    cluster_sync(blocks);  // others may still read this block's sums
    for (int i = 0; i < kEach; ++i) {
      const int j = t + threads * i;
      if (j >= coordinates) continue;
#pragma unroll
      for (int c = 0; c < kWidth; ++c) {
        if (c < a.width) a.partial[(blockIdx.y * index_t{a.width} + c) * a.b.cols + first + j] = z[i][c];
      }
    }
  }
  if (a.stats != nullptr) {
    write_stats(stats, shared_memory<BlockStats>(), a.stats + blockIdx.y * index_t{gridDim.x} + blockIdx.x);
  }
}

// Calls use(kernel) with the kernel of this width.
template <DType storage, class Real, ProductKind kKind, class Use>
auto with_kernel(int width, const Use& use) {
  if (width == 8) return use(&product_kernel<storage, Real, 8, kKind>);
  if constexpr (padded_width(1, sizeof(Real)) == 4) {
    if (width == 4) return use(&product_kernel<storage, Real, 4, kKind>);
    if (width == 16) return use(&product_kernel<storage, Real, 16, kKind>);
  }
  return use(&product_kernel<storage, Real, 32, kKind>);
}

template <DType storage, class Real, ProductKind kKind>
void launch_kind(Stream stream, const ProductPlan& plan, const ProductArguments<Real>& arguments) {
  with_kernel<storage, Real, kKind>(plan.width,
                                    [&](auto* kernel) { launch(stream, plan.grid(kKind), kernel, arguments); });
}

}  // namespace

template <DType storage, class Real>
bool gram_fits_stored(Stream stream, const ProductPlan& plan) {
  return with_kernel<storage, Real, ProductKind::gram>(
      plan.width, [&](auto* kernel) { return cluster_fits(stream, plan.grid(ProductKind::gram), kernel); });
}

template <DType storage, class Real>
void launch_stored(Stream stream, ProductKind kind, const ProductPlan& plan, const ProductArguments<Real>& arguments) {
  if (kind == ProductKind::gram) return launch_kind<storage, Real, ProductKind::gram>(stream, plan, arguments);
  launch_kind<storage, Real, ProductKind::plain>(stream, plan, arguments);
}

template bool gram_fits_stored<DType::MPFAST_STORAGE, MPFAST_REAL>(Stream, const ProductPlan&);

template void launch_stored<DType::MPFAST_STORAGE, MPFAST_REAL>(Stream, ProductKind, const ProductPlan&,
                                                                const ProductArguments<MPFAST_REAL>&);

}  // namespace mpfast::cuda
