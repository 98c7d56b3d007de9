// Compiled once per instruction set (see CMakeLists.txt).
//
// Both phases of Z += P^T (P X) are register tiles of the same shape: a few rows (phase 1) or a few registers of
// columns (phase 2) against up to four vectors, so that about 12 independent FMA chains run and 7 loads feed 12 FMAs.
// Vectors beyond four are further groups over the same matrix tile, which then comes from the first-level cache.
#include "cpu/gram_kernels.hpp"

#include "cpu/simd.hpp"

namespace mpfast::cpu::MPFAST_ISA {

namespace {

extern "C" char* getenv(const char*);
extern "C" int atoi(const char*);
int tune(const char* n, int d) {
  char* e = getenv(n);
  return e ? atoi(e) : d;
}
const int tune_mode = tune("TMODE", 2), tune_ahead = tune("TAHEAD", 8), tune_hint = tune("THINT", 3);
constexpr index_t kGroup = 4;  // vectors a register tile works on
constexpr index_t kCacheLine = 64;
constexpr index_t kTileVectors = 12;      // columns of an axpy tile, in registers: a multiple of every strip below
constexpr index_t kTileRows = 48;         // rows of an axpy tile
constexpr index_t kRowBlockBytes = 4096;  // of one row, in Real: what phase 1 takes from a row at a time, at most
constexpr index_t kXBlockBytes = 16384;   // of X, kept in the first-level cache while the rows go by
constexpr index_t kRunVectors = 16;       // squares added in single precision before they go to double

template <int G>
constexpr int kDotRows = kManyRegisters ? (G >= 3 ? 6 : 4) : (G >= 3 ? 3 : 4);
template <int G>
constexpr int kStripVectors = G == 1 ? 6 : (G == 2 ? 4 : 3);
constexpr int kMaxDotRows = 6;

constexpr index_t minimum(index_t a, index_t b) { return a < b ? a : b; }

// sums[i][g] += w[i][:] x[g][:] over `vectors` whole registers and a last one of `tail` entries.
// R (G + 1) loads and R G FMAs a step; R G accumulators stay in registers.
template <class Real, class Storage, int R, int G>
void dot_tile(const Storage* w, index_t row_stride, const Real* x, index_t width, index_t vectors, index_t tail,
              Real* sums) {
  constexpr int L = kLanes<Real>;
  Vec<Real> a[R][G];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) a[i][g] = load<Real>(sums + (i * width + g) * L);
  }
  for (index_t v = 0; v < vectors; ++v) {
    Vec<Real> row[R];
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) row[i] = load<Real>(w + i * row_stride + v * L);
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      const Vec<Real> xv = load<Real>(x + (v * width + g) * L);
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) a[i][g] = fma(row[i], xv, a[i][g]);
    }
  }
  if (tail > 0) {
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const Vec<Real> row = load_partial<Real>(w + i * row_stride + vectors * L, tail);
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) a[i][g] = fma(row, load<Real>(x + (vectors * width + g) * L), a[i][g]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) store(sums + (i * width + g) * L, a[i][g]);
  }
}

template <class Real, class Storage, int R>
void dot_groups(const Storage* w, index_t row_stride, const Real* x, index_t width, index_t vectors, index_t tail,
                Real* sums) {
  constexpr int L = kLanes<Real>;
  index_t c = 0;
  if constexpr (R <= kDotRows<4>) {
    for (; c + kGroup <= width; c += kGroup) {
      dot_tile<Real, Storage, R, 4>(w, row_stride, x + c * L, width, vectors, tail, sums + c * L);
    }
    if (width - c == 3) {
      return dot_tile<Real, Storage, R, 3>(w, row_stride, x + c * L, width, vectors, tail, sums + c * L);
    }
  }
  switch (width - c) {
    case 1:
      return dot_tile<Real, Storage, R, 1>(w, row_stride, x + c * L, width, vectors, tail, sums + c * L);
    case 2:
      return dot_tile<Real, Storage, R, 2>(w, row_stride, x + c * L, width, vectors, tail, sums + c * L);
    default:
      return;
  }
}

template <class Real, class Storage>
void dot_rows(index_t rows, const Storage* w, index_t row_stride, const Real* x, index_t width, index_t vectors,
              index_t tail, Real* sums) {
  switch (rows) {
    case 1:
      return dot_groups<Real, Storage, 1>(w, row_stride, x, width, vectors, tail, sums);
    case 2:
      return dot_groups<Real, Storage, 2>(w, row_stride, x, width, vectors, tail, sums);
    case 3:
      return dot_groups<Real, Storage, 3>(w, row_stride, x, width, vectors, tail, sums);
    case 4:
      return dot_groups<Real, Storage, 4>(w, row_stride, x, width, vectors, tail, sums);
    default:
      break;
  }
  if constexpr (kManyRegisters) {
    if (rows == 5) return dot_groups<Real, Storage, 5>(w, row_stride, x, width, vectors, tail, sums);
    dot_groups<Real, Storage, 6>(w, row_stride, x, width, vectors, tail, sums);
  }
}

// Adds the squares of a piece of one row to `total`. In float: two chains of 8, then double.
template <class Real, class Storage>
[[gnu::always_inline]] inline void add_squares(const Storage* w, index_t vectors, index_t tail,
                                               Vec<double> (&total)[2]) {
  constexpr int L = kLanes<Real>;
  if constexpr (sizeof(Real) == sizeof(double)) {
    index_t v = 0;
    for (; v + 2 <= vectors; v += 2) {
      const Vec<double> first = load<double>(w + v * L);
      const Vec<double> second = load<double>(w + (v + 1) * L);
      total[0] = fma(first, first, total[0]);
      total[1] = fma(second, second, total[1]);
    }
    for (; v * L < vectors * L + tail; ++v) {
      const Vec<double> last = v < vectors ? load<double>(w + v * L) : load_partial<double>(w + v * L, tail);
      total[0] = fma(last, last, total[0]);
    }
  } else {
    const auto flush = [&total](Vec<float> run) {
      float lanes[L];
      store(lanes, run);
      total[0] += load<double>(lanes);
      total[1] += load<double>(lanes + L / 2);
    };
    index_t v = 0;
    for (; v + kRunVectors <= vectors; v += kRunVectors) {
      Vec<float> even{};
      Vec<float> odd{};
#pragma GCC unroll 8
      for (index_t k = 0; k < kRunVectors; k += 2) {
        const Vec<float> first = load<float>(w + (v + k) * L);
        const Vec<float> second = load<float>(w + (v + k + 1) * L);
        even = fma(first, first, even);
        odd = fma(second, second, odd);
      }
      flush(even + odd);
    }
    Vec<float> run{};
    for (; v < vectors; ++v) {
      const Vec<float> value = load<float>(w + v * L);
      run = fma(value, value, run);
    }
    if (tail > 0) {
      const Vec<float> value = load_partial<float>(w + v * L, tail);
      run = fma(value, value, run);
    }
    flush(run);
  }
}

double total_of(const Vec<double> (&total)[2]) {
  double lanes[kLanes<double>];
  store(lanes, total[0] + total[1]);
  return add_lanes(lanes);
}

// Phase 1. Reads the panel once (rows x cols entries, from memory) and X once; 2 rows cols width flops. A block of X of
// at most 16 KB stays in the first-level cache while every row passes over it. 16-bit entries are widened once into a
// tile in that cache when several groups of vectors use them.
template <class Real, class Storage>
void dot(const Panel& panel, index_t width, const Real* x, Real* sums, double* sum_squares) {
  constexpr index_t L = kLanes<Real>;
  constexpr index_t kMaxBlock = kRowBlockBytes / kVectorBytes;
  constexpr bool kWidens = sizeof(Storage) != sizeof(Real);
  alignas(kVectorBytes) Real widened[kWidens ? kMaxDotRows * kMaxBlock * L : 1];
  const index_t fitting = kXBlockBytes / (width * kVectorBytes);
  const index_t block = fitting > kMaxBlock ? kMaxBlock : (fitting < kRunVectors ? kRunVectors : fitting);
  const index_t step = width >= 3 ? kDotRows<4> : kDotRows<1>;
  const auto* data = static_cast<const Storage*>(panel.data);
  const index_t all = (panel.cols + L - 1) / L;
  Vec<double> total[2] = {};
  for (index_t start = 0; start < all; start += block) {
    const index_t end = minimum(start + block, all);
    const index_t tail = end * L > panel.cols ? panel.cols - (end - 1) * L : 0;
    const index_t whole = end - start - (tail > 0 ? 1 : 0);
    const Real* x_block = x + start * width * L;
    for (index_t i = 0; i < panel.rows; i += step) {
      const index_t rows = minimum(step, panel.rows - i);
      const Storage* w = data + i * panel.row_stride + start * L;
      Real* tile_sums = sums + i * width * L;
      if (sum_squares != nullptr) {
        for (index_t k = 0; k < rows; ++k) add_squares<Real>(w + k * panel.row_stride, whole, tail, total);
      }
      if constexpr (kWidens) {
        if (width > kGroup) {
          for (index_t k = 0; k < rows; ++k) {
            const Storage* row = w + k * panel.row_stride;
            Real* target = widened + k * kMaxBlock * L;
            for (index_t v = 0; v < whole; ++v) store(target + v * L, load<Real>(row + v * L));
            if (tail > 0) store(target + whole * L, load_partial<Real>(row + whole * L, tail));
          }
          dot_rows<Real, Real>(rows, widened, kMaxBlock * L, x_block, width, end - start, 0, tile_sums);
          continue;
        }
      }
      dot_rows<Real, Storage>(rows, w, panel.row_stride, x_block, width, whole, tail, tile_sums);
    }
  }
  if (sum_squares != nullptr) *sum_squares += total_of(total);
}

template <class Real>
void reduce(index_t rows, index_t width, const Real* sums, Real alpha, Real beta, Real* y) {
  for (index_t k = 0; k < rows * width; ++k) y[k] = add_lanes(sums + k * kLanes<Real>) * alpha * beta;
}

// z[s][g] (+)= sum_i w[i][s] y[i][g] for S registers of columns; S + G loads and S G FMAs a row.
// Only the first `whole` registers may be read as a whole; the one after it, if S goes so far, has `tail` entries.
template <class Real, class Storage, int S, int G, bool kPartial>
void axpy_strip(const Storage* w, index_t row_stride, index_t rows, const Real* y, index_t width, Real* z,
                bool overwrite, const char* next, index_t tail) {
  constexpr int L = kLanes<Real>;
  constexpr index_t kStripBytes = S * L * static_cast<index_t>(sizeof(Storage));
  Vec<Real> a[S][G] = {};
  for (index_t i = 0; i < rows; ++i) {
    Vec<Real> strip[S];
    const Storage* row = w + i * row_stride;
    if constexpr (kPartial) {
      strip[0] = load_partial<Real>(row, tail);
    } else {
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) strip[s] = load<Real>(row + s * L);
    }
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      const Vec<Real> factor = broadcast(y[i * width + g]);
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) a[s][g] = fma(strip[s], factor, a[s][g]);
    }
    if (next != nullptr) {
#pragma GCC unroll 8
      for (index_t offset = 0; offset < kStripBytes; offset += kCacheLine) __builtin_prefetch(next + offset, 0, 2);
      next += tune_mode == 1 ? row_stride * sizeof(Storage) : kStripBytes;
    }
  }
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) {
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      Real* target = z + (s * width + g) * L;
      store(target, overwrite ? a[s][g] : load<Real>(target) + a[s][g]);
    }
  }
}

template <class Real, class Storage, int G>
void axpy_group(const Storage* w, index_t row_stride, index_t rows, const Real* y, index_t width, Real* z,
                bool overwrite, const char* next, index_t whole, index_t tail) {
  constexpr index_t L = kLanes<Real>;
  constexpr int S = kStripVectors<G>;
  constexpr auto kBytes = static_cast<index_t>(sizeof(Storage));
  const index_t row_bytes = (whole * L + tail) * kBytes;
  const auto ahead = [=](index_t v) -> const char* {
    if (next == nullptr || tune_mode == 0) return nullptr;
    if (tune_mode == 1) return next + v * L * kBytes;
    const index_t position = v * L * kBytes * rows;
    return next + position / row_bytes * row_stride * kBytes + position % row_bytes;
  };
  index_t v = 0;
  for (; v + S <= whole; v += S) {
    axpy_strip<Real, Storage, S, G, false>(w + v * L, row_stride, rows, y, width, z + v * width * L, overwrite,
                                           ahead(v), 0);
  }
  for (; v < whole; ++v) {
    axpy_strip<Real, Storage, 1, G, false>(w + v * L, row_stride, rows, y, width, z + v * width * L, overwrite,
                                           ahead(v), 0);
  }
  if (tail > 0) {
    axpy_strip<Real, Storage, 1, G, true>(w + v * L, row_stride, rows, y, width, z + v * width * L, overwrite, nullptr,
                                          tail);
  }
}

template <class Real, class Storage>
void axpy_groups(const Storage* w, index_t row_stride, index_t rows, const Real* y, index_t width, Real* z,
                 bool overwrite, const char* next, index_t whole, index_t tail) {
  constexpr index_t L = kLanes<Real>;
  index_t c = 0;
  for (; c + kGroup <= width; c += kGroup) {
    axpy_group<Real, Storage, 4>(w, row_stride, rows, y + c, width, z + c * L, overwrite, next, whole, tail);
    next = nullptr;
  }
  switch (width - c) {
    case 1:
      return axpy_group<Real, Storage, 1>(w, row_stride, rows, y + c, width, z + c * L, overwrite, next, whole, tail);
    case 2:
      return axpy_group<Real, Storage, 2>(w, row_stride, rows, y + c, width, z + c * L, overwrite, next, whole, tail);
    case 3:
      return axpy_group<Real, Storage, 3>(w, row_stride, rows, y + c, width, z + c * L, overwrite, next, whole, tail);
    default:
      return;
  }
}

// Phase 2. Reads the panel once more (from the second- or third-level cache), updates Z once; 2 rows cols width flops.
// With more than one group of vectors, a tile of 12 registers by at most 48 rows is first copied (and widened) to the
// first-level cache: rows of a matrix with a power-of-two leading dimension all fall on the same few cache sets, and
// would be fetched again for every group.
template <class Real, class Storage>
void axpy(const Panel& panel, index_t width, const Real* y, Real* z, bool overwrite, const void* next) {
  constexpr index_t L = kLanes<Real>;
  const auto* data = static_cast<const Storage*>(panel.data);
  const auto* ahead = static_cast<const char*>(next);
  const index_t whole = panel.cols / L;
  const index_t tail = panel.cols % L;
  if (width <= kGroup) {
    return axpy_groups<Real, Storage>(data, panel.row_stride, panel.rows, y, width, z, overwrite, ahead, whole, tail);
  }
  const index_t all = whole + (tail > 0 ? 1 : 0);
  alignas(kVectorBytes) Real tile[kTileRows * kTileVectors * L];
  for (index_t v = 0; v < all; v += kTileVectors) {
    const index_t vectors = minimum(kTileVectors, all - v);
    const index_t tile_whole = minimum(vectors, whole - v);
    Real* z_tile = z + v * width * L;
    for (index_t i = 0; i < panel.rows; i += kTileRows) {
      const index_t rows = minimum(kTileRows, panel.rows - i);
      const Storage* w = data + i * panel.row_stride + v * L;
      const bool replace = overwrite && i == 0;
      if (panel.packed) {
        axpy_groups<Real, Storage>(w, panel.row_stride, rows, y + i * width, width, z_tile, replace, nullptr,
                                   tile_whole, vectors > tile_whole ? tail : 0);
        continue;
      }
      for (index_t k = 0; k < rows; ++k) {
        const Storage* row = w + k * panel.row_stride;
        Real* target = tile + k * kTileVectors * L;
        if (ahead != nullptr && tune_mode) {
          const index_t bytes = vectors * L * static_cast<index_t>(sizeof(Storage));
          const index_t position = v * L * sizeof(Storage) * panel.rows + (i + k) * bytes;
          const index_t row_bytes = panel.cols * sizeof(Storage);
          const char* line =
              tune_mode == 1 ? ahead + ((i + k) * panel.row_stride + v * L) * static_cast<index_t>(sizeof(Storage))
                             : ahead + position / row_bytes * panel.row_stride * static_cast<index_t>(sizeof(Storage)) +
                                   position % row_bytes;
          for (index_t offset = 0; offset < bytes; offset += kCacheLine) __builtin_prefetch(line + offset, 0, 2);
        }
        if (tile_whole == kTileVectors) {
#pragma GCC unroll 12
          for (index_t s = 0; s < kTileVectors; ++s) store(target + s * L, load<Real>(row + s * L));
        } else {
          for (index_t s = 0; s < tile_whole; ++s) store(target + s * L, load<Real>(row + s * L));
          if (vectors > tile_whole) store(target + tile_whole * L, load_partial<Real>(row + tile_whole * L, tail));
        }
      }
      axpy_groups<Real, Real>(tile, kTileVectors * L, rows, y + i * width, width, z_tile, replace, nullptr, vectors, 0);
    }
  }
}

template <class Storage>
double sum_squares(const Panel& panel, double scale) {
  constexpr index_t L = kLanes<double>;
  const auto* data = static_cast<const Storage*>(panel.data);
  const index_t whole = panel.cols / L;
  const index_t tail = panel.cols % L;
  const Vec<double> factor = broadcast(scale);
  Vec<double> total[2] = {};
  for (index_t i = 0; i < panel.rows; ++i) {
    const Storage* row = data + i * panel.row_stride;
    for (index_t v = 0; v < whole; ++v) {
      const Vec<double> value = load<double>(row + v * L) * factor;
      total[v % 2] = fma(value, value, total[v % 2]);
    }
    if (tail > 0) {
      const Vec<double> value = load_partial<double>(row + whole * L, tail) * factor;
      total[0] = fma(value, value, total[0]);
    }
  }
  return total_of(total);
}

// Joins pieces of 16 bytes (each P entries of Real) from several rows into one register, piece k from row k * P.
template <class Real, class Storage>
[[gnu::always_inline]] inline Vec<Real> load_pieces(const Storage* source, index_t col_stride) {
  constexpr int P = 16 / static_cast<int>(sizeof(Real));
  constexpr int kPieces = kLanes<Real> / P;
  VecN<Real, P> pieces[kPieces];
  for (int k = 0; k < kPieces; ++k) pieces[k] = load_n<Real, P>(source + k * P * col_stride);
  return bit_copy<Vec<Real>>(pieces);
}

// A block of P x P entries inside every 16-byte piece changes places with its transpose.
template <class Real>
[[gnu::always_inline]] inline void transpose_pieces(Vec<Real> (&v)[16 / sizeof(Real)]) {
  if constexpr (sizeof(Real) == 4) {
    using Pairs = Vec<double>;
    const Pairs low01 = bit_copy<Pairs>(interleave_low(v[0], v[1]));
    const Pairs low23 = bit_copy<Pairs>(interleave_low(v[2], v[3]));
    const Pairs high01 = bit_copy<Pairs>(interleave_high(v[0], v[1]));
    const Pairs high23 = bit_copy<Pairs>(interleave_high(v[2], v[3]));
    v[0] = bit_copy<Vec<Real>>(interleave_low(low01, low23));
    v[1] = bit_copy<Vec<Real>>(interleave_high(low01, low23));
    v[2] = bit_copy<Vec<Real>>(interleave_low(high01, high23));
    v[3] = bit_copy<Vec<Real>>(interleave_high(high01, high23));
  } else {
    const Vec<Real> low = interleave_low(v[0], v[1]);
    v[1] = interleave_high(v[0], v[1]);
    v[0] = low;
  }
}

template <class Real, class Storage>
[[gnu::always_inline]] inline Real load_one(const Storage* p) {
  return load_partial<Real>(p, 1)[0];
}

// Source rows are contiguous along i (row_stride 1): transposed in registers, L source columns at a time.
// Reads and writes each entry once; the source comes from memory in pieces of `rows` entries.
template <class Real, class Storage>
void pack_transposed(const Storage* data, const PackSource& source, Real* target, index_t target_stride) {
  constexpr index_t L = kLanes<Real>;
  constexpr index_t P = 16 / static_cast<index_t>(sizeof(Real));
  constexpr index_t kLineEntries = kCacheLine / static_cast<index_t>(sizeof(Storage));
  const index_t rows = source.rows - source.rows % P;
  index_t j = 0;
  for (; j + L <= source.cols; j += L) {
    const Storage* block = data + j * source.col_stride;
    for (index_t k = 0; k < L; ++k) {
      const Storage* column = block + (k + tune_ahead) * source.col_stride;
      for (index_t i = 0; i < source.rows; i += kLineEntries)
        if (tune_hint == 3)
          __builtin_prefetch(column + i, 0, 3);
        else if (tune_hint)
          __builtin_prefetch(column + i, 0, 2);
    }
    for (index_t i = 0; i < rows; i += P) {
      Vec<Real> v[P];
#pragma GCC unroll 4
      for (index_t q = 0; q < P; ++q) v[q] = load_pieces<Real>(block + i + q * source.col_stride, source.col_stride);
      transpose_pieces<Real>(v);
#pragma GCC unroll 4
      for (index_t q = 0; q < P; ++q) store(target + (i + q) * target_stride + j, v[q]);
    }
    for (index_t i = rows; i < source.rows; ++i) {
      for (index_t k = 0; k < L; ++k)
        target[i * target_stride + j + k] = load_one<Real>(block + i + k * source.col_stride);
    }
  }
  if (j == source.cols) return;
  for (index_t i = 0; i < source.rows; ++i) {
    for (index_t k = 0; k < L; ++k) {
      target[i * target_stride + j + k] =
          j + k < source.cols ? load_one<Real>(data + i + (j + k) * source.col_stride) : Real{0};
    }
  }
}

template <class Real, class Storage>
void pack(const PackSource& source, Real* target, index_t target_stride) {
  constexpr index_t L = kLanes<Real>;
  const auto* data = static_cast<const Storage*>(source.data);
  const index_t padded = (source.cols + L - 1) / L * L;
  if (source.row_stride == 1) return pack_transposed<Real, Storage>(data, source, target, target_stride);
  for (index_t i = 0; i < source.rows; ++i) {
    const Storage* row = data + i * source.row_stride;
    Real* line = target + i * target_stride;
    for (index_t j = 0; j < source.cols; ++j) line[j] = load_one<Real>(row + j * source.col_stride);
    for (index_t j = source.cols; j < padded; ++j) line[j] = Real{0};
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
constexpr GramKernels<Real> kKernels = {
    kLanes<Real>,         dot<Real, Storage>,  reduce<Real>, axpy<Real, Storage>,
    sum_squares<Storage>, pack<Real, Storage>, read<Bits>,
};

}  // namespace

const GramKernels<float>* float_kernels(DType storage) {
  switch (storage) {
    case DType::float32:
      return &kKernels<float, float, std::uint32_t>;
    case DType::float16:
      return &kKernels<float, Half, std::uint16_t>;
    case DType::bfloat16:
      return &kKernels<float, BFloat, std::uint16_t>;
    default:
      return nullptr;
  }
}

const GramKernels<double>* double_kernels(DType storage) {
  switch (storage) {
    case DType::float64:
      return &kKernels<double, double, std::uint64_t>;
    case DType::float32:
      return &kKernels<double, float, std::uint32_t>;
    case DType::float16:
      return &kKernels<double, Half, std::uint16_t>;
    default:
      return &kKernels<double, BFloat, std::uint16_t>;
  }
}

}  // namespace mpfast::cpu::MPFAST_ISA
