// Compiled once per instruction set (see CMakeLists.txt), with internal linkage for all but the last function.
#include "cpu/products/coded_sweep.hpp"

#include "cpu/decoding/code_registers.hpp"
#include "cpu/machine/dispatch.hpp"
#include "cpu/products/sweep_tiles.hpp"

namespace mpfast::cpu::MPFAST_ISA {

namespace {

// Whether the machine widens halves.
#ifdef __F16C__
constexpr bool kWidensHalves = true;
#else
constexpr bool kWidensHalves = false;
#endif

// With few registers the panels of the cache take 6 % less time from four vectors on.
constexpr index_t kMostVectors = kManyRegisters ? kGroupWidth : 3;

constexpr index_t L = kLanes<float>;
constexpr index_t kTileScales = kSweepScales / 2;  // of the rows of a tile, for one register of columns

template <Code code>
constexpr index_t kPairBytes = kPair<float> * FormatOf<code>::kBits / 8;

// Registers of columns, in whole pairs.
index_t registers_of(const CodedMatrix& w) { return (w.cols + kPair<float> - 1) / kPair<float> * 2; }

// Along R rows of codes, with the scales of every register.
template <Code code, int R>
struct CodedWalk {
  const std::uint8_t* at = nullptr;
  index_t row_stride = 0;
  const float* scales = nullptr;
  index_t ahead = 0;  // bytes

  struct Pair {
    Words halves[R];
    const float* scales;

    template <int h>
    [[gnu::always_inline]] RowRegisters<float, R> half() const {
      RowRegisters<float, R> found;
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        found.rows[i] = in_register(widened<h>(halves[i]) * broadcast(scales[h * kTileScales + i]));
      }
      return found;
    }
  };

  [[gnu::always_inline]] void prefetch() const {
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) __builtin_prefetch(at + i * row_stride + ahead, 0, 2);
  }

  [[gnu::always_inline]] Pair pair() const {
    Pair found;
    found.scales = scales;
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) found.halves[i] = halves_of<code>(load_codes<code>(at + i * row_stride));
    return found;
  }

  [[gnu::always_inline]] const std::uint8_t* after(index_t pairs) const { return at + pairs * kPairBytes<code>; }

  [[gnu::always_inline]] void advance() {
    at += kPairBytes<code>;
    scales += 2 * kTileScales;
  }
};

// R rows of a matrix of codes. Whole pairs of registers stay where they lie; the codes left over are copied and padded
// with those of zero.
template <Code code, int R>
class CodedTile {
 public:
  static constexpr int kRows = R;
  using Walk = CodedWalk<code, R>;

  CodedTile(const CodedMatrix& w, float* scales) : w_(w), scales_(scales) {}

  bool begin(index_t row) {
    if (!spread_scales(row)) return false;
    const std::uint8_t* const codes = w_.codes + row * w_.row_stride;
    const index_t pairs = w_.cols / kPair<float>;
    const index_t bytes = pairs * kPairBytes<code>;
    strips[0] = {{codes, w_.row_stride, scales_, fetch_ahead<R>(bytes, w_.row_stride, 1)}, pairs};
    const index_t rest = w_.cols % kPair<float>;
    if (rest == 0) return true;
    for (int i = 0; i < R; ++i) copy_codes(codes + i * w_.row_stride + bytes, rest, copies_ + i * kPairBytes<code>);
    strips[1] = {{copies_, kPairBytes<code>, scales_ + 2 * pairs * kTileScales, 0}, 1};
    return true;
  }

  Strip<Walk> strips[2];

 private:
  static void copy_codes(const std::uint8_t* from, index_t count, std::uint8_t* to) {
    for (index_t k = 0; k < kPairBytes<code>; ++k) {
      if constexpr (FormatOf<code>::kBits == 4) {
        to[k] = 2 * k + 1 < count ? from[k] : 2 * k < count ? static_cast<std::uint8_t>(from[k] & 0xf) : 0;
      } else {
        to[k] = k < count ? from[k] : 0;
      }
    }
  }

  // Puts the scales of the tile's rows beside one another, for every register, with the unit of the halves in them,
  // which rounds nothing. False where one is not finite, or would not be.
  bool spread_scales(index_t row) {
    using Scales = VecN<float, kTileScales>;
    using Bits = VecN<std::uint32_t, kTileScales>;
    constexpr float kUnit = FormatOf<code>::kUnit;
    constexpr auto kMost = __builtin_bit_cast(std::uint32_t, 0x1p127F / kUnit);
    const index_t registers = registers_of(w_);
    const index_t blocks = (w_.cols + w_.width - 1) / w_.width;
    const index_t in_block = w_.width / L;
    const float* from = w_.scales + row * w_.scale_stride;
    float* to = scales_;
    Bits beyond{};
    for (index_t block = 0; block < blocks; ++block, ++from) {
      Scales scales{};
      for (int i = 0; i < R; ++i) scales[i] = from[i * w_.scale_stride];
      beyond |= bit_copy<Bits>((bit_copy<Bits>(scales) & 0x7fffffffU) > kMost);
      scales *= kUnit;
      // The last block has what is left, padding and all.
      const float* const end = scales_ + kTileScales * (block + 1 == blocks ? registers : (block + 1) * in_block);
      for (; to != end; to += kTileScales) __builtin_memcpy(to, &scales, sizeof scales);
    }
    return (beyond[0] | beyond[1] | beyond[2] | beyond[3]) == 0;
  }

  CodedMatrix w_;
  float* scales_;
  std::uint8_t copies_[R * kPairBytes<code>];
};

template <Code code, int G, bool kSquares>
index_t sweep_codes_of(const CodedMatrix& w, const SweepVectors<float>& vectors, float* scales) {
  using Tile = CodedTile<code, kSweepRows<G>>;
  Tile tiles[2] = {Tile(w, scales), Tile(w, scales + kTileScales * registers_of(w))};
  return sweep_tiles<float, Tile, G, kSquares>(tiles, w.rows, w.cols, vectors);
}

// All entries of a register must have the same scale.
template <Code code>
index_t sweep_codes(const CodedMatrix& w, const SweepVectors<float>& vectors, float* scales) {
  if (vectors.width > kMostVectors || (w.width % L != 0 && w.width < w.cols)) return 0;
  index_t done = 0;
  with_width<kMostVectors>(vectors.width, [&]<int G>() {
    done = vectors.squares.wanted() ? sweep_codes_of<code, G, true>(w, vectors, scales)
                                    : sweep_codes_of<code, G, false>(w, vectors, scales);
  });
  return done;
}

}  // namespace

}  // namespace mpfast::cpu::MPFAST_ISA

namespace mpfast::cpu {

template <>
CodedSweep coded_sweep<isa::MPFAST_ISA>(Code code) {
  return dispatch(code, []<Code each>() -> CodedSweep {
    if constexpr (MPFAST_ISA::kWidensHalves) return &MPFAST_ISA::sweep_codes<each>;
    return nullptr;
  });
}

}  // namespace mpfast::cpu
