// The kernel of the Gram product Z = B^T (B X) in one pass over B. Compiled once per storage type (MPFAST_STORAGE) and
// precision (MPFAST_REAL), so that the builds run side by side.
//
// A cluster of blocks goes through the tiles of its chunk of B, all columns of a few rows; a block has a slice of the
// columns (the coordinates), a thread a few of them, with its parts of X and Z in registers. For each tile:
//   1. every warp waits for its entries, which were asked for two tiles ago;
//   2. y = tile X: a thread multiplies its own coordinates, the lanes of a warp add up by exchange, each ending with
//      one value of y, and the warps leave their sums in shared memory;
//   3. the block's sums are sent to every block of the cluster;
//   4. z += tile^T y for the tile before, whose y has arrived meanwhile: the way through the cluster is hidden behind
//      the work on a whole tile;
//   5. the tile after the next is asked for, into the place of the one that is done with.
// Bytes: m n entries read once, plus b N and, per chunk, b N vector entries. Flops: 4 m n b.
// Neighbours in memory may be coordinates or rows (see gram_layout.hpp); other matrices are copied entry by entry.
// No sum depends on timing, and no atomics are used: lanes, warps and blocks are added up in fixed orders.
#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/dtype.hpp"
#include "cuda/machine/platform.hpp"
#include "cuda/products/block_stats.hpp"
#include "cuda/products/gram_layout.hpp"
#include "cuda/products/pack.hpp"
#include "cuda/products/product_kernels.hpp"

namespace mpfast::cuda {

namespace {

// What is neighbours in memory.
enum class Contiguous { coordinates, rows };

template <DType storage, class RealType, int width, Contiguous contiguous, int team>
struct GramShape {
  using Real = RealType;
  using Bits = typename Entry<storage>::Bits;
  static constexpr DType kStorage = storage;
  static constexpr int kWidth = width;
  static constexpr bool kByCoordinates = contiguous == Contiguous::coordinates;
  static constexpr bool kTensor = by_tensor_cores(storage, sizeof(Real));
  static constexpr int kEach = gram_coordinates(sizeof(Real));
  static constexpr int kWarpCoordinates = kEach * kWarp;
  static constexpr int kTeam = team;
  static constexpr int kRows = gram_rows(storage);  // of a tile, for each warp of a team
  static constexpr int kTileRows = kRows * team;
  static constexpr int kValues = kRows * width;  // of y, for each warp of a team
  // Entries of a copy, and copies of a coordinate where rows are neighbours.
  static constexpr int kPiece = kPieceBytes / int{sizeof(Bits)};
  static constexpr int kPieces = kTileRows / kPiece;
  static_assert(!kByCoordinates || team == 1);
};

// A thread's place in its block, its coordinates there, and where entries lie in a tile.
template <class Shape>
struct Place {
  int t = static_cast<int>(threadIdx.x);
  int threads = static_cast<int>(blockDim.x);
  int lane = t % kWarp;
  int warp = t / kWarp;
  int member = warp % Shape::kTeam;
  int first_coordinate = warp / Shape::kTeam * Shape::kWarpCoordinates;
  int first_row = member * Shape::kRows;

  __device__ int coordinate(int c) const {
    return Shape::kByCoordinates ? t * Shape::kEach + c : first_coordinate + c * kWarp + lane;
  }

  // A barrier of those who share the entries of a tile.
  __device__ void sync() const {
    if constexpr (Shape::kTeam == 2) {
      pair_sync();
    } else {
      __syncwarp();
    }
  }

  // The entry of one of the coordinates and a row. Those after it, up to the end of 16 bytes, follow.
  __device__ int at(int coordinate, int row) const {
    constexpr int kPiece = Shape::kPiece;
    if constexpr (!Shape::kByCoordinates) {
      constexpr int kLanes = 8 / Shape::kPieces;  // whose coordinates fill the banks
      const int piece = row / kPiece ^ (coordinate / kLanes % Shape::kPieces);
      return coordinate * Shape::kTileRows + piece * kPiece + row % kPiece;
    } else if constexpr (Shape::kTensor) {
      const int piece = coordinate / kPiece ^ (row % 8);
      return row * threads * Shape::kEach + piece * kPiece + coordinate % kPiece;
    } else {
      return row * threads * Shape::kEach + coordinate;
    }
  }
};

// Entries that are read at once; those of 16 bits in words of two, from which the upper one is taken at no cost.
template <class Shape, int kCount>
class Taken {
 public:
  using Bits = typename Shape::Bits;

  __device__ explicit Taken(const Bits* from) : words_(*reinterpret_cast<const Pack<Word, kCount / kPerWord>*>(from)) {}
  __device__ typename Shape::Real operator[](int e) const {
    Word word = words_.values[e / kPerWord];
    if constexpr (kPerWord == 2) word >>= e % 2 * 16;
    return static_cast<typename Shape::Real>(Entry<Shape::kStorage>::widen(static_cast<Bits>(word)));
  }

 private:
  static constexpr int kPerWord = sizeof(Bits) == 2 ? 2 : 1;
  using Word = std::conditional_t<kPerWord == 2, std::uint32_t, Bits>;
  Pack<Word, kCount / kPerWord> words_;
};

// Brings tiles from memory into shared memory, each warp its own entries; what lies outside B is zero.
template <class Shape>
class TileFetch {
 public:
  using Bits = typename Shape::Bits;

  // Coordinates [first, first + coordinates) of B.
  __device__ TileFetch(const MatrixView& b, index_t first, int coordinates)
      : b_(b), origin_(static_cast<const Bits*>(b.data) + first * b.col_stride), coordinates_(coordinates) {
    const index_t inner = kByCoordinates ? b.col_stride : b.row_stride;
    const index_t outer = kByCoordinates ? b.row_stride : b.col_stride;
    const int last = place_.first_coordinate + Shape::kWarpCoordinates;
    whole_ = inner == 1 && outer % Shape::kPiece == 0 && reinterpret_cast<std::uintptr_t>(b.data) % kPieceBytes == 0 &&
             last <= coordinates;
    from_ = kByCoordinates ? own_row() * b.row_stride + own_coordinate() : own_row() + own_coordinate() * b.col_stride;
    step_ = kByCoordinates ? kRowStep * b.row_stride : kCoordinateStep * b.col_stride;
  }

  // Begins to copy the tile that starts at row0.
  __device__ void start(index_t row0, Bits* tile) const {
    if (!whole_ || row0 + Shape::kTileRows > b_.rows) return start_by_entries(row0, tile);
    const Bits* from = origin_ + row0 * b_.row_stride + from_;
#pragma unroll
    for (int i = 0; i < Shape::kEach * Shape::kRows / Shape::kPiece; ++i) {
      copy_async<kPieceBytes>(tile + place_.at(own_coordinate() + i * kCoordinateStep, own_row() + i * kRowStep), from);
      from += step_;
    }
  }

 private:
  static constexpr bool kByCoordinates = Shape::kByCoordinates;
  // From one copy of a lane to the next.
  static constexpr int kRowStep = kByCoordinates ? Shape::kPiece / Shape::kEach : 0;
  static constexpr int kCoordinateStep = kByCoordinates ? 0 : Shape::kTeam * kWarp / Shape::kPieces;

  __device__ int own_row() const {
    if constexpr (kByCoordinates) return place_.lane % kRowStep;
    return place_.lane % Shape::kPieces * Shape::kPiece;
  }
  __device__ int own_coordinate() const {
    if constexpr (kByCoordinates) return place_.t / kRowStep * Shape::kPiece;
    return place_.first_coordinate + (place_.member * kWarp + place_.lane) / Shape::kPieces;
  }

  // Where a copy of 16 bytes would reach beyond B, or neighbours in the tile are none in memory.
  __device__ void start_by_entries(index_t row0, Bits* tile) const {
#pragma unroll 1
    for (int i = 0; i < Shape::kEach * Shape::kRows; ++i) {
      const int c = i % Shape::kEach;
      const int row = place_.first_row + i / Shape::kEach;
      const int j = place_.coordinate(c);
      const bool given = row0 + row < b_.rows && j < coordinates_;
      const Bits* const from = given ? origin_ + (row0 + row) * b_.row_stride + j * b_.col_stride : origin_;
      Bits* const to = tile + place_.at(j, row);
      if constexpr (sizeof(Bits) >= 4) {
        if (given) {
          copy_async<sizeof(Bits)>(to, from);
          continue;
        }
      }
      *to = given ? *from : Bits{0};
    }
  }

  Place<Shape> place_;
  MatrixView b_;
  const Bits* origin_;
  int coordinates_;
  bool whole_;    // the warp's coordinates are in B, and copies of 16 bytes find what they want
  index_t from_;  // of the first copy, from the first entry of the tile
  index_t step_;
};

// Adds up values[0] to values[kCount - 1] over 2 kMask lanes of a warp: of the sums, that of value number
// lane % (2 kMask) / (2 kMask / kCount) remains. In the first steps, which halve kSlots, a lane has put what it keeps
// first: its slot s is row s ^ (lane * kSlots / 32).
template <int kCount, int kSlots, int kMask = kWarp / 2, int kSize, class Real>
__device__ Real scattered_sum(Real (&values)[kSize], int lane) {
  if constexpr (kMask == 0) {
    return values[0];
  } else if constexpr (kCount == 1) {
    values[0] += __shfl_xor_sync(0xffffffffU, values[0], kMask);
    return scattered_sum<1, 1, kMask / 2>(values, lane);
  } else {
    constexpr int kHalf = kCount / 2;
    const bool upper = kSlots == 1 && (lane & kMask) != 0;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const Real sent = upper ? values[i] : values[i + kHalf];
      const Real kept = upper ? values[i + kHalf] : values[i];
      values[i] = kept + __shfl_xor_sync(0xffffffffU, sent, kMask);
    }
    return scattered_sum<kHalf, (kSlots > 1 ? kSlots / 2 : 1), kMask / 2>(values, lane);
  }
}

// The products of a warp with its entries of a tile, entry by entry. y of a tile is [row][vector].
template <class Shape>
class LaneProducts {
  using Bits = typename Shape::Bits;
  using Real = typename Shape::Real;
  static constexpr int kWidth = Shape::kWidth;
  static constexpr int kEach = Shape::kEach;
  // Rows whose y a thread holds at a time, values of y that they have, and rows that are read at once.
  static constexpr int kGroup = (sizeof(Real) == 8 ? 16 : 32) / kWidth;
  static constexpr int kCount = kGroup * kWidth;
  [[maybe_unused]] static constexpr int kTaken = kGroup < Shape::kPiece ? kGroup : Shape::kPiece;

 public:
  template <class Load>
  __device__ explicit LaneProducts(const Load& x) {
#pragma unroll
    for (int c = 0; c < kEach; ++c) {
#pragma unroll
      for (int k = 0; k < kWidth; ++k) x_[c][k] = x(place_.coordinate(c), k);
    }
  }

  // sums = this warp's part of y = tile X.
  __device__ void multiply(const Bits* tile, Real* sums) const {
#pragma unroll 1
    for (int first = 0; first < Shape::kRows; first += kGroup) {
      Real y[kCount] = {};
      Real sum;
      if constexpr (Shape::kByCoordinates) {
        const int turn = place_.lane * kGroup / kWarp;
        const Bits* const own = tile + place_.at(place_.coordinate(0), first);
#pragma unroll
        for (int s = 0; s < kGroup; ++s) {
          const Taken<Shape, kEach> w(own + (s ^ turn) * place_.threads * kEach);
#pragma unroll
          for (int c = 0; c < kEach; ++c) add_row(y, s, w[c], c);
        }
        sum = scattered_sum<kCount, kGroup>(y, place_.lane);
      } else {
#pragma unroll
        for (int s = 0; s < kGroup; s += kTaken) {
#pragma unroll
          for (int c = 0; c < kEach; ++c) {
            const Taken<Shape, kTaken> w(tile + place_.at(place_.coordinate(c), place_.first_row + first + s));
#pragma unroll
            for (int e = 0; e < kTaken; ++e) add_row(y, s + e, w[e], c);
          }
        }
        sum = scattered_sum<kCount, 1>(y, place_.lane);
      }
      constexpr int kCopies = kWarp / kCount;
      if (place_.lane % kCopies == 0) sums[first * kWidth + place_.lane / kCopies] = sum;
    }
  }

  // y as add_transposed() wants it. `y_of(i)` is value i; `room` is the warp's, for all of them.
  using Received = const Pack<Real, kWidth>*;
  template <class Values>
  __device__ Received received(const Values& y_of, Real* room) const {
#pragma unroll
    for (int i = 0; i < Shape::kValues; i += kWarp) room[i + place_.lane] = y_of(i + place_.lane);
    __syncwarp();
    return reinterpret_cast<Received>(room);
  }

  // z += tile^T y.
  __device__ void add_transposed(const Bits* tile, Received y) {
    if constexpr (Shape::kByCoordinates) {
      const Bits* own = tile + place_.at(place_.coordinate(0), 0);
#pragma unroll 4
      for (int row = 0; row < Shape::kRows; ++row) {
        const Taken<Shape, kEach> w(own);
        const auto values = y[row];
#pragma unroll
        for (int c = 0; c < kEach; ++c) add_coordinate(c, w[c], values);
        own += place_.threads * kEach;
      }
    } else {
#pragma unroll 1
      for (int row = 0; row < Shape::kRows; row += kTaken) {
        const auto w = [&]<int... c>(std::integer_sequence<int, c...>) {
          return Pack<Taken<Shape, kTaken>, kEach>{
              {Taken<Shape, kTaken>(tile + place_.at(place_.coordinate(c), place_.first_row + row))...}};
        }(std::make_integer_sequence<int, kEach>());
#pragma unroll
        for (int e = 0; e < kTaken; ++e) {
          const auto values = y[row + e];
#pragma unroll
          for (int c = 0; c < kEach; ++c) add_coordinate(c, w.values[c][e], values);
        }
      }
    }
  }

  // Calls use(coordinate, vector, value) for this thread's part of Z.
  template <class Use>
  __device__ void result(const Use& use) const {
#pragma unroll
    for (int c = 0; c < kEach; ++c) {
#pragma unroll
      for (int k = 0; k < kWidth; ++k) use(place_.coordinate(c), k, z_[c][k]);
    }
  }

 private:
  __device__ void add_row(Real (&y)[kCount], int s, Real entry, int c) const {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) y[s * kWidth + k] += entry * x_[c][k];
  }
  __device__ void add_coordinate(int c, Real entry, const Pack<Real, kWidth>& y) {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) z_[c][k] += entry * y.values[k];
  }

  Place<Shape> place_;
  Real x_[kEach][kWidth];
  Real z_[kEach][kWidth] = {};
};

// The same by tensor cores, for entries of bfloat16 and single precision. X and y are sums of three bfloat16 terms,
// which hold all of their 24 bits; their products with an entry are exact. What the tensor cores add up, in their own
// way of rounding, is 16 products of each term; all further sums are ordinary ones.
template <class Shape>
class TensorProducts {
  using Bits = typename Shape::Bits;
  using Real = typename Shape::Real;
  static constexpr int kStep = 16;
  static constexpr int kSteps = Shape::kWarpCoordinates / kStep;
  static_assert(Shape::kWidth == 8 && Shape::kRows % kStep == 0);

  // A 16 x 8 operand of the tensor cores, by terms, the largest first. A lane has four of its entries.
  struct Terms {
    std::uint32_t words[3][2];

    Terms() = default;
    // value(k) is entry k of the lane's column.
    template <class Value>
    __device__ Terms(const Value& value, int lane) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float low = value(half * 8 + lane % 4 * 2);
        float high = value(half * 8 + lane % 4 * 2 + 1);
#pragma unroll
        for (int term = 0; term < 3; ++term) {
          const std::uint32_t word = bfloat16_pair(low, high);
          words[term][half] = word;
          low -= __builtin_bit_cast(float, word << 16);
          high -= __builtin_bit_cast(float, word & 0xffff0000U);
        }
      }
    }

    // sum += w times this. The smallest terms come first.
    __device__ void add_product(const std::uint32_t (&w)[4], float (&sum)[4]) const {
      float product[4] = {};
#pragma unroll
      for (int term = 2; term >= 0; --term) add_matrix_product(product, w, words[term]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] += product[i];
    }
  };

 public:
  template <class Load>
  __device__ explicit TensorProducts(const Load& x) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      x_[s] = Terms([&](int k) { return x(place_.first_coordinate + s * kStep + k, place_.lane / 4); }, place_.lane);
    }
  }

  __device__ void multiply(const Bits* tile, Real* sums) const {
#pragma unroll 1
    for (int first = 0; first < Shape::kRows; first += kStep) {
      Real y[4] = {};
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        std::uint32_t w[4];
        load_matrices<!Shape::kByCoordinates>(w, tile + place_of_line(first, s * kStep, true));
        x_[s].add_product(w, y);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first + half * 8 + place_.lane / 4;
        Real* const to = sums + row * Shape::kWidth + place_.lane % 4 * 2;
        *reinterpret_cast<Pack<Real, 2>*>(to) = {y[2 * half], y[2 * half + 1]};
      }
    }
  }

  using Received = Pack<Terms, Shape::kRows / kStep>;
  template <class Values>
  __device__ Received received(const Values& y_of, Real*) const {
    Received y;
#pragma unroll
    for (int i = 0; i < Shape::kRows / kStep; ++i) {
      y.values[i] = Terms([&](int k) { return y_of((i * kStep + k) * Shape::kWidth + place_.lane / 4); }, place_.lane);
    }
    return y;
  }

  __device__ void add_transposed(const Bits* tile, const Received& y) {
#pragma unroll
    for (int i = 0; i < Shape::kRows / kStep; ++i) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        std::uint32_t w[4];
        load_matrices<Shape::kByCoordinates>(w, tile + place_of_line(i * kStep, s * kStep, false));
        y.values[i].add_product(w, z_[s]);
      }
    }
  }

  template <class Use>
  __device__ void result(const Use& use) const {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        use(place_.first_coordinate + s * kStep + i / 2 * 8 + place_.lane / 4, place_.lane % 4 * 2 + i % 2, z_[s][i]);
      }
    }
  }

 private:
  // The place of the line that this lane names when a 16 x 16 operand is read, four 8 x 8 matrices: lines are rows of
  // the tile, or its coordinates. The operand has rows of the tile along its first axis when `rows_first`.
  __device__ int place_of_line(int row, int coordinate, bool rows_first) const {
    const int matrix = place_.lane / 8;
    const int line = place_.lane % 8;
    // Matrices 0 and 1 are neighbours along the first axis of the operand, 0 and 2 along the second.
    const int across = matrix % 2 * 8;
    const int along = matrix / 2 * 8;
    row += rows_first ? across : along;
    coordinate += rows_first ? along : across;
    if constexpr (Shape::kByCoordinates) {
      row += line;
    } else {
      coordinate += line;
    }
    return place_.at(place_.first_coordinate + coordinate, place_.first_row + row);
  }

  Place<Shape> place_;
  Terms x_[kSteps];
  Real z_[kSteps][4] = {};
};

// Adds what a thread's entries of the tile that starts at row0 say of W.
template <class Shape>
__device__ void add_to_stats(BlockStats& stats, const Place<Shape>& place, const typename Shape::Bits* tile,
                             index_t row0, index_t first, const MatrixView& b, double scale, bool swapped) {
  for (int c = 0; c < Shape::kEach; ++c) {
    for (int r = 0; r < Shape::kRows; ++r) {
      const auto bits = tile[place.at(place.coordinate(c), place.first_row + r)];
      const double scaled = Entry<Shape::kStorage>::widen(bits) * scale;
      stats.squares += scaled * scaled;
      constexpr auto kExponent = Entry<Shape::kStorage>::kExponent;
      if ((bits & kExponent) != kExponent) continue;
      const index_t row = row0 + place.first_row + r;
      const index_t col = first + place.coordinate(c);
      add_nonfinite(stats, swapped ? col * b.rows + row : row * b.cols + col);
    }
  }
}

template <class Shape, class Real>
__global__ void __launch_bounds__(kMostGramThreads) gram_product_kernel(ProductArguments<Real> a) {
  using Bits = typename Shape::Bits;
  using Products = std::conditional_t<Shape::kTensor, TensorProducts<Shape>, LaneProducts<Shape>>;
  constexpr int kWidth = Shape::kWidth;
  constexpr int kOwnValues = Shape::kValues;
  constexpr int kValues = kOwnValues * Shape::kTeam;  // of y, for a tile
  const Place<Shape> place;
  const int warps = place.threads / kWarp;
  const int blocks = static_cast<int>(gridDim.x);
  const auto rank = static_cast<int>(blockIdx.x);
  const GramMemory memory(Shape::kStorage, sizeof(Real), kWidth, place.threads, Shape::kTeam);
  auto* const bytes = shared_memory<unsigned char>();
  const auto tile_of = [&](int number) {
    return reinterpret_cast<Bits*>(bytes +
                                   static_cast<unsigned>(number) % kGramStages * static_cast<unsigned>(memory.tile));
  };
  const auto warp_sums_of = [&](int number) {
    return reinterpret_cast<Real*>(bytes + memory.warp_sums) + number % 2 * warps * kOwnValues;
  };
  const auto arrivals_of = [&](int number) {
    return reinterpret_cast<Arrivals*>(bytes + memory.arrivals) + number % 2;
  };
  const auto parts_of = [&](int number) {
    return reinterpret_cast<Real*>(bytes + memory.parts) + number % 2 * kMostClusterBlocks * kValues;
  };

  const index_t first = rank * a.slice;
  const index_t left = a.b.cols - first;
  const auto coordinates = static_cast<int>(left < a.slice ? left : a.slice);
  const TileFetch<Shape> fetch(a.b, first, coordinates);
  // Chunks take the tiles in turn, so that what is read at a time lies close together.
  const index_t tiles = (a.b.rows + Shape::kTileRows - 1) / Shape::kTileRows;
  const auto count = static_cast<int>((tiles - blockIdx.y + gridDim.y - 1) / gridDim.y);
  const auto row_of = [&](int number) { return (blockIdx.y + index_t{number} * gridDim.y) * Shape::kTileRows; };
  const auto ask_for = [&](int number) {
    if (number < count) fetch.start(row_of(number), tile_of(number));
    commit_copies();
  };
  for (int number = 0; number < kGramStages - 1; ++number) ask_for(number);

  Products products([&](int j, int k) {
    return k < a.width && j < coordinates ? a.x[k * a.x_stride + first + j] * a.x_scale : Real{0};
  });
  BlockStats stats;
  for (int i = place.t; i < 2 * kMostClusterBlocks * kValues; i += place.threads) parts_of(0)[i] = 0;
  if (place.t < 2) start_arrivals(arrivals_of(place.t));
  cluster_sync(blocks);

  // y of a tile, when the parts of all blocks are here. The warp's sums, which are no longer needed by whoever sent
  // this block's part, leave room for it.
  const auto received = [&](int number) {
    wait_for_arrivals(arrivals_of(number), static_cast<unsigned>(number) / 2, blocks);
    const Real* const parts = parts_of(number) + place.member * kOwnValues;
    const auto y_of = [&](int i) {
      Real total = 0;
#pragma unroll
      for (int from = 0; from < kMostClusterBlocks; ++from) total += parts[from * kValues + i];
      return total * a.y_scale[0] * a.y_scale[1];
    };
    return products.received(y_of, warp_sums_of(number) + place.warp * kOwnValues);
  };
  static_assert(kValues <= kLeastGramThreads * Shape::kTeam && kOwnValues % kWarp == 0);
  for (int number = 0; number < count; ++number) {
    wait_for_copies<kGramStages - 2>();
    place.sync();
    const Bits* const tile = tile_of(number);
    if (a.stats != nullptr) {
      add_to_stats(stats, place, tile, row_of(number), first, a.b, a.entry_scale, a.swapped);
    }
    Real* const sums = warp_sums_of(number);
    products.multiply(tile, sums + place.warp * kOwnValues);
    // Everything that was sent for the tile before is here: all blocks are done with the one before that, whose place
    // in their memory is to be filled.
    typename Products::Received y{};
    if (number > 0) y = received(number - 1);
    __syncthreads();
    if (place.t < kValues) {
      if (place.t == 0) expect_arrivals(arrivals_of(number), blocks * kValues * int{sizeof(Real)}, blocks);
      Real total = 0;
#pragma unroll 8
      for (int w = 0; w < warps / Shape::kTeam; ++w) total += sums[w * kValues + place.t];
      for (int to = 0; to < blocks; ++to) {
        send(parts_of(number) + rank * kValues + place.t, total, arrivals_of(number), to, blocks);
      }
    }
    if (number > 0) products.add_transposed(tile_of(number - 1), y);
    place.sync();
    ask_for(number - 1 + kGramStages);
  }
  products.add_transposed(tile_of(count - 1), received(count - 1));
  products.result([&](int j, int k, Real value) {
    if (k < a.width && j < coordinates) {
      const index_t part = blockIdx.y * index_t{Shape::kTeam} + place.member;
      a.partial[(part * a.width + k) * a.b.cols + first + j] = value;
    }
  });
  if (a.stats != nullptr) {
    write_stats(stats, shared_memory<BlockStats>(), a.stats + blockIdx.y * index_t{gridDim.x} + blockIdx.x);
  }
}

// Calls use(kernel) with the kernel for this product.
template <DType storage, class Real, class Use>
auto with_kernel(const ProductPlan& plan, const MatrixView& b, const Use& use) {
  const auto by = [&]<int width>() {
    if (plan.team == 2) return use(&gram_product_kernel<GramShape<storage, Real, width, Contiguous::rows, 2>, Real>);
    if (rows_are_neighbours(b))
      return use(&gram_product_kernel<GramShape<storage, Real, width, Contiguous::rows, 1>, Real>);
    return use(&gram_product_kernel<GramShape<storage, Real, width, Contiguous::coordinates, 1>, Real>);
  };
  if constexpr (gram_width(1, storage, sizeof(Real)) == 4) {
    if (plan.width == 4) return by.template operator()<4>();
  }
  return by.template operator()<8>();
}

}  // namespace

template <DType storage, class Real>
index_t gram_places_stored(Stream stream, const ProductPlan& plan, const MatrixView& b) {
  return with_kernel<storage, Real>(plan, b,
                                    [&](auto* kernel) { return places(stream, plan.grid(ProductKind::gram), kernel); });
}

template <DType storage, class Real>
void launch_gram_stored(Stream stream, const ProductPlan& plan, const ProductArguments<Real>& arguments) {
  with_kernel<storage, Real>(plan, arguments.b,
                             [&](auto* kernel) { launch(stream, plan.grid(ProductKind::gram), kernel, arguments); });
}

template index_t gram_places_stored<DType::MPFAST_STORAGE, MPFAST_REAL>(Stream, const ProductPlan&, const MatrixView&);
template void launch_gram_stored<DType::MPFAST_STORAGE, MPFAST_REAL>(Stream, const ProductPlan&,
                                                                     const ProductArguments<MPFAST_REAL>&);

}  // namespace mpfast::cuda
