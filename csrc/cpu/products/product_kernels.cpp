// Compiled once per instruction set (see CMakeLists.txt).
//
// Register tiles. Phase 1 (dot_tiles.hpp) multiplies a few whole rows by a group of vectors; phase 2 (axpy_tiles.hpp)
// adds the rows of a panel, each times its factors, to a pair of registers of columns of a group. For eight vectors a
// tile has 24 independent chains of FMAs fed by 11 loads in phase 1, and 16 fed by 10 in phase 2; for four vectors and
// 16 registers it has 12 fed by 7, and 8 fed by 6. The wider the group, the less often W is read from the second-level
// cache.
#include "cpu/products/product_kernels.hpp"

#include "cpu/machine/dispatch.hpp"
#include "cpu/products/sweep_tiles.hpp"

namespace mpfast::cpu::MPFAST_ISA {

namespace {

// With AVX-512, and entries that need no widening, the two phases one after the other are faster than a sweep: for 8192
// x 8192 float32 and four vectors they take 8.3 ms, a sweep 9.9 ms.
template <class Real, class Storage>
constexpr bool kSweeps = kVectorBytes < 64 || sizeof(Storage) < sizeof(Real);

// Along R rows of entries.
template <class Real, class Storage, int R>
struct StoredWalk {
  const Storage* at = nullptr;
  index_t row_stride = 0;
  index_t ahead = 0;  // from an entry to the one that is asked for

  [[gnu::always_inline]] void prefetch() const {
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) __builtin_prefetch(at + i * row_stride + ahead, 0, 2);
  }

  [[gnu::always_inline]] const StoredWalk& pair() const { return *this; }

  template <int h>
  [[gnu::always_inline]] RowRegisters<Real, R> half() const {
    RowRegisters<Real, R> found;
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) found.rows[i] = load_half<Real, h>(at + i * row_stride);
    return found;
  }

  [[gnu::always_inline]] const Storage* after(index_t pairs) const { return at + pairs * kPair<Real>; }

  [[gnu::always_inline]] void advance() { at += kPair<Real>; }
};

// R rows of a panel.
template <class Real, class Storage, int R>
class StoredTile {
 public:
  static constexpr int kRows = R;
  using Walk = StoredWalk<Real, Storage, R>;

  explicit StoredTile(const Panel& panel) : panel_(panel) {}

  bool begin(index_t row) {
    columns_.hold(static_cast<const Storage*>(panel_.data) + row * panel_.row_stride, panel_.row_stride, R,
                  panel_.cols);
    for (int s = 0; s < 2; ++s) {
      const auto& span = columns_.spans[s];
      const index_t ahead = fetch_ahead<R>(span.pairs * kPair<Real>, span.row_stride, sizeof(Storage));
      strips[s] = {{span.data, span.row_stride, ahead}, span.pairs};
    }
    return true;
  }

  Strip<Walk> strips[2];

 private:
  Panel panel_;
  Columns<Real, Storage, R> columns_;
};

template <class Real, class Storage, int G, bool kSquares>
void sweep_rows(const Panel& panel, const SweepVectors<Real>& vectors) {
  constexpr int R = kSweepRows<G>;
  using Tile = StoredTile<Real, Storage, R>;
  Tile tiles[2] = {Tile(panel), Tile(panel)};
  const index_t whole = sweep_tiles<Real, Tile, G, kSquares>(tiles, panel.rows, panel.cols, vectors);
  const Panel rest{static_cast<const Storage*>(panel.data) + whole * panel.row_stride, panel.row_stride,
                   panel.rows - whole, panel.cols};
  Real totals[R * G * kLanes<Real>] = {};
  Real y[R * G];
  add_group_dots<Real, Storage, G>(rest, vectors.x, totals);
  add_up(rest.rows * G, totals, vectors.alpha, vectors.beta, y);
  weight_rows<Real, G>(vectors.factors_from(whole), rest.rows, y);
  axpy_group<Real, Storage, G, kSquares>(rest, y, vectors.z, vectors.squares.from(whole));
}

template <class Real, class Storage>
void sweep(const Panel& panel, const SweepVectors<Real>& vectors) {
  with_width<kGroupWidth>(vectors.width, [&]<int G>() {
    if (!vectors.squares.wanted()) return sweep_rows<Real, Storage, G, false>(panel, vectors);
    sweep_rows<Real, Storage, G, true>(panel, vectors);
  });
}

template <class Real, class Storage>
void pack(const PackSource& source, Real* target, index_t target_stride) {
  const auto* data = static_cast<const Storage*>(source.data);
  for (index_t i = 0; i < source.rows; ++i) {
    const Storage* row = data + i * source.row_stride;
    Real* line = target + i * target_stride;
    index_t j = 0;
    if (source.col_stride == 1) {
      for (; j + kLanes<Real> <= source.cols; j += kLanes<Real>) store(line + j, load<Real>(row + j));
    }
    for (; j < source.cols; ++j) line[j] = load_one<Real>(row + j * source.col_stride);
  }
}

template <class Bits>
std::uint64_t read(const void* data, index_t count) {
  constexpr index_t L = kVectorBytes / static_cast<index_t>(sizeof(Bits));
  using Integers = VecN<Bits, static_cast<int>(L)>;
  const auto* entries = static_cast<const Bits*>(data);
  Integers sums[4] = {};
  index_t k = 0;
  for (; k + 4 * L <= count; k += 4 * L) {
#pragma GCC unroll 4
    for (index_t s = 0; s < 4; ++s) sums[s] += load_as<Integers>(entries + k + s * L);
  }
  const Integers joined = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  Bits total = 0;
  for (index_t lane = 0; lane < L; ++lane) total = static_cast<Bits>(total + joined[lane]);
  for (; k < count; ++k) total = static_cast<Bits>(total + entries[k]);
  return total;
}

template <class Real, class Storage, class Bits>
constexpr ProductKernels<Real> kKernels = {
    kLanes<Real>,
    kPairedStorage<Real, Storage>,
    kWideGroup,
    add_dots<Real, Storage>,
    add_up<Real>,
    axpy<Real, Storage>,
    kSweeps<Real, Storage> ? &sweep<Real, Storage> : nullptr,
    pack<Real, Storage>,
    read<Bits>,
};

template <class Real>
const ProductKernels<Real>* kernels_for(DType dtype) {
  return dispatch(dtype, []<DType storage>() -> const ProductKernels<Real>* {
    if constexpr (kNeedsDouble<storage> && sizeof(Real) == sizeof(float)) {
      return nullptr;
    } else {
      return &kKernels<Real, typename StorageOf<storage>::Type, typename Entry<storage>::Bits>;
    }
  });
}

}  // namespace

}  // namespace mpfast::cpu::MPFAST_ISA

namespace mpfast::cpu {

template <>
const ProductKernels<float>* product_kernels<isa::MPFAST_ISA, float>(DType storage) {
  return MPFAST_ISA::kernels_for<float>(storage);
}

template <>
const ProductKernels<double>* product_kernels<isa::MPFAST_ISA, double>(DType storage) {
  return MPFAST_ISA::kernels_for<double>(storage);
}

}  // namespace mpfast::cpu
