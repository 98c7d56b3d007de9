// The driver of the Gram products: which entries make a panel, which panels make a task, and in what order partial
// results meet. The arithmetic is in gram_kernels.cpp.
//
// With B = W (right) or W^T (left), Z = B^T (B X) goes through panels of a few rows of B that fit a cache: phase 1
// forms y = panel X while the panel arrives from memory, phase 2 adds panel^T y while it is still in the cache. Rows of
// B that are contiguous are used where they lie; otherwise a panel is packed into a buffer of the worker first.
#include "cpu/gram.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/gram_kernels.hpp"
#include "cpu/isa.hpp"

namespace mpfast::cpu {

namespace {

// Blocking. Nothing here depends on the machine or on the number of threads, so that neither do the results.
inline int tune(const char* n, int d) {
  char* e = std::getenv(n);
  return e ? std::atoi(e) : d;
}
const index_t kPanelBytes = index_t{tune("TPANEL", 256)} << 10;  // half of a common second-level cache
constexpr index_t kMaxPanelBytes = index_t{3} << 19;             // one core's share of a common third-level cache
constexpr index_t kMaxStripBytes = index_t{4} << 20;             // the same for packed panels, which are worth more
constexpr index_t kPanelRows = 48;
const index_t kChunkRows = tune("TCHUNK", 128);      // combining partial results costs about 8 rows' worth of work
constexpr index_t kChunkEntries = index_t{1} << 18;  // a task is worth at least this many entries,
constexpr index_t kTaskEntries = index_t{1} << 22;   // and at most this many (32 vectors: about 10 ms)
constexpr index_t kPackSegment = 256;                // entries of each row packed, then used, in one go
constexpr index_t kVectorBlock = index_t{1} << 16;   // entries per task when vectors change their layout
constexpr index_t kFewTasks = 64;
constexpr index_t kCacheLine = 64;

constexpr index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }
constexpr index_t round_up(index_t a, index_t b) { return ceil_div(a, b) * b; }

template <class Real>
const GramKernels<Real>& kernels_for(DType storage) {
  const auto pick = [storage](auto float_kernels, auto double_kernels) {
    if constexpr (sizeof(Real) == sizeof(float)) {
      return float_kernels(storage);
    } else {
      return double_kernels(storage);
    }
  };
  const GramKernels<Real>* kernels = nullptr;
  switch (active_isa()) {
#ifdef MPFAST_X86_DISPATCH
    case Isa::avx512:
      kernels = pick(&avx512::float_kernels, &avx512::double_kernels);
      break;
    case Isa::avx2:
      kernels = pick(&avx2::float_kernels, &avx2::double_kernels);
      break;
#endif
    default:
      kernels = pick(&baseline::float_kernels, &baseline::double_kernels);
  }
  if (kernels == nullptr) {
    throw std::invalid_argument("float64 storage needs double precision vectors, got single precision ones");
  }
  return *kernels;
}

template <class Real>
constexpr DType dtype_of() {
  return sizeof(Real) == sizeof(double) ? DType::float64 : DType::float32;
}

// Uninitialised memory that starts on a cache line.
template <class Real>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(index_t size)
      : size_(size),
        data_(static_cast<Real*>(::operator new(static_cast<std::size_t>(size) * sizeof(Real), kAlignment))) {}

  Real* data() const { return data_.get(); }
  explicit operator bool() const { return data_ != nullptr; }

  void reserve(index_t size) {
    if (size > size_) *this = Buffer(size);
  }

 private:
  static constexpr std::align_val_t kAlignment{kCacheLine};
  struct Free {
    void operator()(Real* p) const { ::operator delete(p, kAlignment); }
  };
  index_t size_ = 0;
  std::unique_ptr<Real, Free> data_;
};

// 2^-e as two factors that both are normal numbers.
template <class Real>
struct Scale {
  Real half = 1;
  Real rest = 1;
  double whole = 1;

  explicit Scale(int e) {
    const int limit = sizeof(Real) == sizeof(double) ? 1020 : 250;
    if (std::abs(e) > limit) {
      throw std::invalid_argument("scale_exponent must be between -" + std::to_string(limit) + " and " +
                                  std::to_string(limit) + ", got " + std::to_string(e));
    }
    half = std::ldexp(Real{1}, -(e / 2));
    rest = std::ldexp(Real{1}, -(e - e / 2));
    whole = std::ldexp(1.0, -e);
  }
};

const void* entry(const MatrixView& w, index_t row, index_t col) {
  const index_t offset = (row * w.row_stride + col * w.col_stride) * static_cast<index_t>(size_of(w.dtype));
  return static_cast<const char*>(w.data) + offset;
}

MatrixView part(const MatrixView& w, index_t row, index_t rows, index_t col, index_t cols) {
  return {entry(w, row, col), w.dtype, rows, cols, w.row_stride, w.col_stride};
}

bool is_finite(const void* p, DType dtype) {
  std::uint64_t u64 = 0;
  std::uint32_t u32 = 0;
  std::uint16_t u16 = 0;
  switch (dtype) {
    case DType::float64:
      std::memcpy(&u64, p, sizeof u64);
      return (u64 >> 52 & 0x7ffU) != 0x7ffU;
    case DType::float32:
      std::memcpy(&u32, p, sizeof u32);
      return (u32 >> 23 & 0xffU) != 0xffU;
    case DType::float16:
      std::memcpy(&u16, p, sizeof u16);
      return (u16 >> 10 & 0x1fU) != 0x1fU;
    default:
      std::memcpy(&u16, p, sizeof u16);
      return (u16 >> 7 & 0xffU) != 0xffU;
  }
}

// PassStats of a part of B, in the row-major order of W.
class StatsPart {
 public:
  void add_sum(double sum) { stats_.frobenius_squared += sum; }

  // `part` starts at (row, col) of B; `swapped`: B is W^T.
  void add_nonfinite(const MatrixView& part, index_t row, index_t col, bool swapped) {
    for (index_t i = 0; i < part.rows; ++i) {
      for (index_t j = 0; j < part.cols; ++j) {
        if (is_finite(entry(part, i, j), part.dtype)) continue;
        ++stats_.nonfinite_count;
        note(swapped ? col + j : row + i, swapped ? row + i : col + j);
      }
    }
  }

  void merge(const StatsPart& other) {
    stats_.frobenius_squared += other.stats_.frobenius_squared;
    if (other.stats_.nonfinite_count == 0) return;
    stats_.nonfinite_count += other.stats_.nonfinite_count;
    note(other.stats_.first_nonfinite_row, other.stats_.first_nonfinite_col);
  }

  const PassStats& stats() const { return stats_; }

 private:
  void note(index_t row, index_t col) {
    const index_t first = stats_.first_nonfinite_row;
    if (first >= 0 && (first < row || (first == row && stats_.first_nonfinite_col < col))) return;
    stats_.first_nonfinite_row = row;
    stats_.first_nonfinite_col = col;
  }

  PassStats stats_;
};

void collect(const std::vector<StatsPart>& parts, PassStats* stats) {
  if (stats == nullptr) return;
  StatsPart all;
  for (const auto& each : parts) all.merge(each);
  *stats = all.stats();
}

// Between vectors one after the other (x[c * length + j]) and the kernels' interleaved layout.
template <class Real>
void interleave(Team& team, index_t lanes, index_t width, index_t length, const Real* x, Real scale, Real* packed) {
  const index_t block = std::max(kVectorBlock / width / lanes, index_t{1});
  const index_t groups = ceil_div(length, lanes);
  team.parallel_for(ceil_div(groups, block), [&](index_t task, int) {
    for (index_t g = task * block; g < std::min((task + 1) * block, groups); ++g) {
      for (index_t c = 0; c < width; ++c) {
        Real* target = packed + (g * width + c) * lanes;
        const Real* source = x + c * length + g * lanes;
        const index_t count = std::min(lanes, length - g * lanes);
        for (index_t k = 0; k < count; ++k) target[k] = source[k] * scale;
        for (index_t k = count; k < lanes; ++k) target[k] = 0;
      }
    }
  });
}

template <class Real>
void deinterleave(index_t lanes, index_t width, index_t length, index_t first_group, index_t last_group,
                  const Real* packed, Real scale, Real* x) {
  for (index_t g = first_group; g < last_group; ++g) {
    for (index_t c = 0; c < width; ++c) {
      const Real* source = packed + ((g - first_group) * width + c) * lanes;
      Real* target = x + c * length + g * lanes;
      const index_t count = std::min(lanes, length - g * lanes);
      for (index_t k = 0; k < count; ++k) target[k] = source[k] * scale;
    }
  }
}

template <class Real>
void add_into(Real* left, const Real* right, index_t count) {
  for (index_t k = 0; k < count; ++k) left[k] += right[k];
}

// Partial results of chunks 0..count-1, added in a fixed binary tree whatever the order in which they are finished: the
// right one of a pair always into the left one, by whoever comes second. Buffers are used again, so about
// (workers + log2(count)) of them live at a time.
template <class Real>
class PartialTree {
 public:
  PartialTree(index_t count, index_t size) : size_(size) {
    for (index_t level = count;; level = ceil_div(level, 2)) {
      waiting_.emplace_back(static_cast<std::size_t>(level));
      if (level == 1) break;
    }
  }

  Buffer<Real> acquire() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) return Buffer<Real>(size_);
    Buffer<Real> buffer = std::move(free_.back());
    free_.pop_back();
    return buffer;
  }

  void finish(index_t chunk, Buffer<Real> partial) {
    index_t at = chunk;
    for (std::size_t level = 0; level + 1 < waiting_.size(); ++level, at /= 2) {
      auto& nodes = waiting_[level];
      const index_t partner = at ^ 1;
      if (partner >= static_cast<index_t>(nodes.size())) continue;
      Buffer<Real> other;
      {
        const std::lock_guard lock(mutex_);
        other = std::move(nodes[static_cast<std::size_t>(partner)]);
        if (!other) {
          nodes[static_cast<std::size_t>(at)] = std::move(partial);
          return;
        }
      }
      if (partner < at) std::swap(partial, other);
      add_into(partial.data(), other.data(), size_);
      const std::lock_guard lock(mutex_);
      free_.push_back(std::move(other));
    }
    root_ = std::move(partial);
  }

  const Real* root() const { return root_.data(); }

 private:
  index_t size_;
  std::mutex mutex_;
  std::vector<std::vector<Buffer<Real>>> waiting_;
  std::vector<Buffer<Real>> free_;
  Buffer<Real> root_;
};

// What one worker needs for its panels.
template <class Real>
struct Workspace {
  Buffer<Real> sums;  // of dot: panel rows x width x lanes
  Buffer<Real> y;     // panel rows x width
  Buffer<Real> panel;
};

// Row i of a packed panel starts an odd number of cache lines after row i - 1, so that rows spread over all cache sets.
template <class Real>
index_t packed_stride(index_t cols, index_t lanes) {
  const index_t line = kCacheLine / static_cast<index_t>(sizeof(Real));
  const index_t lines = ceil_div(round_up(cols, lanes), line);
  return (lines | 1) * line;
}

// Phase 1 on rows of B, at columns [col, col + cols) of it: fills work.sums, and the panel to use for phase 2.
template <class Real>
class PanelReader {
 public:
  PanelReader(const MatrixView& b, bool swapped, index_t width, const Real* x, const Scale<Real>& scale)
      : b_(b),
        swapped_(swapped),
        natural_(b.col_stride == 1 || b.cols == 1),
        width_(width),
        x_(x),
        scale_(scale),
        own_(kernels_for<Real>(b.dtype)),
        packed_(kernels_for<Real>(dtype_of<Real>())) {}

  bool natural() const { return natural_; }
  const GramKernels<Real>& kernels() const { return natural_ ? own_ : packed_; }

  // Adds to work.sums, which the caller has cleared. keep: a packed panel stays whole in work.panel, for phase 2.
  // Without it only a segment of it exists at a time.
  Panel dot(Workspace<Real>& work, index_t row, index_t rows, index_t col, index_t cols, bool keep,
            StatsPart* stats) const {
    const MatrixView rows_of_b = part(b_, row, rows, col, cols);
    const Real* x = x_ + col * width_;
    if (natural_) {
      const Panel panel{rows_of_b.data, b_.row_stride, rows, cols, false};
      multiply_panel(own_, panel, x, work, rows_of_b, row, col, stats);
      return panel;
    }
    const index_t lanes = packed_.lanes;
    const index_t stride = packed_stride<Real>(keep ? cols : std::min(cols, kPackSegment), lanes);
    work.panel.reserve(rows * stride);
    for (index_t start = 0; start < cols; start += kPackSegment) {
      const index_t count = std::min(kPackSegment, cols - start);
      const MatrixView piece = part(rows_of_b, 0, rows, start, count);
      Real* target = work.panel.data() + (keep ? start : 0);
      own_.pack({piece.data, piece.row_stride, piece.col_stride, rows, count}, target, stride);
      const Panel panel{target, stride, rows, round_up(count, lanes), true};
      multiply_panel(packed_, panel, x + start * width_, work, piece, row, col + start, stats);
    }
    return {work.panel.data(), stride, rows, round_up(cols, lanes), true};
  }

 private:
  void multiply_panel(const GramKernels<Real>& kernels, const Panel& panel, const Real* x, Workspace<Real>& work,
                      const MatrixView& source, index_t row, index_t col, StatsPart* stats) const {
    if (stats == nullptr) return kernels.dot(panel, width_, x, work.sums.data(), nullptr);
    // Fast where the plain squares are safe; a panel where they are not is read again, in double and scaled.
    double sum = 0;
    kernels.dot(panel, width_, x, work.sums.data(), &sum);
    const double mean = sum / (static_cast<double>(source.rows) * static_cast<double>(source.cols));
    const bool single = sizeof(Real) == sizeof(float);
    const double smallest = single ? 1e-30 : 1e-290;
    const double largest = single ? 1e30 : 1e290;
    if (mean > smallest && sum < largest) {
      sum = sum * scale_.whole * scale_.whole;
    } else {
      sum = kernels.sum_squares(panel, scale_.whole);
      if (!std::isfinite(sum)) stats->add_nonfinite(source, row, col, swapped_);
    }
    stats->add_sum(sum);
  }

  MatrixView b_;
  bool swapped_;
  bool natural_;
  index_t width_;
  const Real* x_;
  const Scale<Real>& scale_;
  const GramKernels<Real>& own_;
  const GramKernels<Real>& packed_;
};

template <class Real>
void prepare(Workspace<Real>& work, index_t rows, index_t width, index_t lanes) {
  work.sums.reserve(rows * width * lanes);
  work.y.reserve(rows * width);
  std::fill_n(work.sums.data(), rows * width * lanes, Real{0});
}

// How B is cut. A function of shape, storage and width alone.
struct Blocking {
  index_t panel_rows = 0;  // 0: no panel fits a cache, take two passes
  index_t chunk_rows = 0;
};

template <class Real>
Blocking choose_blocking(const MatrixView& b, bool natural, index_t width) {
  // X and Z (three times a row of vectors) travel once per panel, hence wide products want panels of many rows.
  const index_t wanted = std::max(index_t{4}, tune("TW", 3) * width);
  const index_t row_bytes = b.cols * static_cast<index_t>(natural ? size_of(b.dtype) : sizeof(Real));
  const index_t affordable = (natural ? kMaxPanelBytes : kMaxStripBytes) / row_bytes;
  index_t rows = std::min({std::max(wanted, kPanelBytes / row_bytes), affordable, kPanelRows});
  if (natural) {
    if (rows < 4 && b.rows > 1) return {};
    if (rows > 12) rows -= rows % 12;  // whole register tiles
  } else {
    // Whole cache lines of the rows of B^T, which are what comes from memory.
    const index_t line = kCacheLine / static_cast<index_t>(size_of(b.dtype));
    rows = std::min(std::max(rows, 2 * line), affordable) / line * line;
    if (rows == 0 && b.rows > 1) return {};
  }
  rows = std::max(rows, index_t{1});
  index_t chunk = std::max(kChunkRows, ceil_div(kChunkEntries, b.cols));
  chunk = std::min(chunk, std::max(kTaskEntries / b.cols, rows));
  chunk = round_up(chunk, rows);
  if (b.rows <= chunk && b.rows * b.cols > 2 * kTaskEntries) return {};  // no parallel work in one pass
  return {rows, chunk};
}

template <class Real>
void check(const MatrixView& w, index_t width) {
  if (w.rows < 1 || w.cols < 1) throw std::invalid_argument("the matrix is empty");
  if (width < 1) throw std::invalid_argument("the block of vectors is empty");
  kernels_for<Real>(w.dtype);
}

// Y = scale B X for at most kMaxBlockWidth vectors, where rows of B are contiguous or must be packed.
// Few rows: the columns are shared out as well, and the partial sums are added in order.
template <class Real>
void multiply_by_dots(Team& team, const MatrixView& b, bool swapped, const Scale<Real>& scale, index_t width,
                      const Real* x, Real* y, PassStats* stats) {
  const index_t lanes = kernels_for<Real>(b.dtype).lanes;
  Buffer<Real> packed_x(round_up(b.cols, lanes) * width);
  interleave(team, lanes, width, b.cols, x, scale.half, packed_x.data());
  const PanelReader<Real> reader(b, swapped, width, packed_x.data(), scale);

  const index_t rows = std::min(kPanelRows, b.rows);
  const index_t blocks = ceil_div(b.rows, rows);
  const index_t wanted = std::max(ceil_div(kFewTasks, blocks), ceil_div(rows * b.cols, kTaskEntries));
  const index_t slices = std::clamp(ceil_div(rows * b.cols, kChunkEntries), index_t{1}, wanted);
  const index_t slice = round_up(ceil_div(b.cols, slices), kPackSegment);
  const index_t used = ceil_div(b.cols, slice);
  Buffer<Real> partial(used * b.rows * width);
  std::vector<Workspace<Real>> work(static_cast<std::size_t>(team.size()));
  std::vector<StatsPart> parts(static_cast<std::size_t>(blocks * used));

  team.parallel_for(blocks * used, [&](index_t task, int worker) {
    auto& mine = work[static_cast<std::size_t>(worker)];
    const index_t row = task / used * rows;
    const index_t count = std::min(rows, b.rows - row);
    const index_t col = task % used * slice;
    prepare(mine, count, width, lanes);
    reader.dot(mine, row, count, col, std::min(slice, b.cols - col), false,
               stats == nullptr ? nullptr : &parts[static_cast<std::size_t>(task)]);
    reader.kernels().reduce(count, width, mine.sums.data(), scale.rest, Real{1},
                            partial.data() + (task % used * b.rows + row) * width);
  });
  for (index_t k = 1; k < used; ++k) add_into(partial.data(), partial.data() + k * b.rows * width, b.rows * width);
  for (index_t i = 0; i < b.rows; ++i) {
    for (index_t c = 0; c < width; ++c) y[c * b.rows + i] = partial.data()[i * width + c];
  }
  collect(parts, stats);
}

// Y = scale A^T X for at most kMaxBlockWidth vectors, where rows of A are contiguous: columns are shared out, and the
// rows as well where the columns are few.
template <class Real>
void multiply_by_axpys(Team& team, const MatrixView& a, const Scale<Real>& scale, index_t width, const Real* x,
                       Real* y) {
  const auto& kernels = kernels_for<Real>(a.dtype);
  const index_t lanes = kernels.lanes;
  constexpr index_t kCols = 1024;
  const index_t cols = std::min(kCols, a.cols);
  const index_t blocks = ceil_div(a.cols, cols);
  const index_t wanted = std::max(ceil_div(kFewTasks, blocks), ceil_div(cols * a.rows, kTaskEntries));
  const index_t slices = std::clamp(ceil_div(cols * a.rows, kChunkEntries), index_t{1}, wanted);
  const index_t slice = ceil_div(a.rows, slices);
  const index_t used = ceil_div(a.rows, slice);
  const index_t groups = ceil_div(a.cols, lanes);
  Buffer<Real> partial(used * groups * lanes * width);
  std::vector<Buffer<Real>> factors(static_cast<std::size_t>(team.size()));

  team.parallel_for(blocks * used, [&](index_t task, int worker) {
    auto& mine = factors[static_cast<std::size_t>(worker)];
    mine.reserve(kPanelRows * width);
    const index_t col = task / used * cols;
    const index_t first = task % used * slice;
    const index_t last = std::min(first + slice, a.rows);
    Real* target = partial.data() + (task % used * groups * lanes + col) * width;
    for (index_t row = first; row < last; row += kPanelRows) {
      const index_t count = std::min(kPanelRows, last - row);
      for (index_t i = 0; i < count; ++i) {
        for (index_t c = 0; c < width; ++c) mine.data()[i * width + c] = x[c * a.rows + row + i] * scale.half;
      }
      const Panel panel{entry(a, row, col), a.row_stride, count, std::min(cols, a.cols - col), false};
      const void* next = row + 2 * count <= last ? entry(a, row + count, col) : nullptr;
      kernels.axpy(panel, width, mine.data(), target, row == first, next);
    }
  });
  const index_t block = std::max(kVectorBlock / width / lanes, index_t{1});
  team.parallel_for(ceil_div(groups, block), [&](index_t task, int) {
    const index_t begin = task * block;
    const index_t end = std::min(begin + block, groups);
    Real* sum = partial.data() + begin * lanes * width;
    for (index_t k = 1; k < used; ++k) {
      add_into(sum, sum + k * groups * lanes * width, (end - begin) * lanes * width);
    }
    deinterleave(lanes, width, a.cols, begin, end, sum, scale.rest, y);
  });
}

// Y = scale B X, and the statistics of B when the method at hand sees its entries in a row; says whether it did.
template <class Real>
bool multiply_block(Team& team, const MatrixView& b, bool swapped, const Scale<Real>& scale, index_t width,
                    const Real* x, Real* y, PassStats* stats) {
  if (b.col_stride != 1 && b.row_stride == 1 && b.rows > 1) {
    multiply_by_axpys(team, b.transposed(), scale, width, x, y);
    return false;
  }
  multiply_by_dots(team, b, swapped, scale, width, x, y, stats);
  return true;
}

}  // namespace

template <class Real>
void gram_product(Team& team, const MatrixView& w, Side side, int scale_exponent, int width, const Real* x, Real* z,
                  PassStats* stats) {
  check<Real>(w, width);
  if (width > kMaxBlockWidth) {
    throw std::invalid_argument("a Gram product takes at most " + std::to_string(kMaxBlockWidth) + " vectors, got " +
                                std::to_string(width));
  }
  const bool swapped = side == Side::left;
  const MatrixView b = swapped ? w.transposed() : w;
  const Scale<Real> scale(scale_exponent);
  const bool natural = b.col_stride == 1 || b.cols == 1;
  const Blocking blocking = choose_blocking<Real>(b, natural, width);
  if (blocking.panel_rows == 0) {
    Buffer<Real> y(b.rows * width);
    const bool counted = multiply_block(team, b, swapped, scale, width, x, y.data(), stats);
    multiply_block(team, b.transposed(), !swapped, scale, width, y.data(), z, counted ? nullptr : stats);
    return;
  }

  const index_t lanes = kernels_for<Real>(b.dtype).lanes;
  const index_t size = round_up(b.cols, lanes) * width;
  Buffer<Real> packed_x(size);
  interleave(team, lanes, width, b.cols, x, scale.half, packed_x.data());
  const PanelReader<Real> reader(b, swapped, width, packed_x.data(), scale);

  const index_t chunks = ceil_div(b.rows, blocking.chunk_rows);
  std::vector<Workspace<Real>> work(static_cast<std::size_t>(team.size()));
  std::vector<StatsPart> parts(static_cast<std::size_t>(chunks));
  PartialTree<Real> tree(chunks, size);
  team.parallel_for(chunks, [&](index_t chunk, int worker) {
    auto& mine = work[static_cast<std::size_t>(worker)];
    Buffer<Real> partial = tree.acquire();
    const index_t first = chunk * blocking.chunk_rows;
    const index_t last = std::min(first + blocking.chunk_rows, b.rows);
    for (index_t row = first; row < last; row += blocking.panel_rows) {
      const index_t count = std::min(blocking.panel_rows, last - row);
      prepare(mine, count, width, lanes);
      const Panel panel = reader.dot(mine, row, count, 0, b.cols, true,
                                     stats == nullptr ? nullptr : &parts[static_cast<std::size_t>(chunk)]);
      reader.kernels().reduce(count, width, mine.sums.data(), scale.half, scale.rest, mine.y.data());
      const bool more = natural && row + 2 * count <= last;
      const void* next = more ? entry(b, row + count, 0) : nullptr;
      reader.kernels().axpy(panel, width, mine.y.data(), partial.data(), row == first, next);
    }
    tree.finish(chunk, std::move(partial));
  });
  const index_t groups = ceil_div(b.cols, lanes);
  const index_t block = std::max(kVectorBlock / width / lanes, index_t{1});
  team.parallel_for(ceil_div(groups, block), [&](index_t task, int) {
    const index_t begin = task * block;
    deinterleave(lanes, width, b.cols, begin, std::min(begin + block, groups), tree.root() + begin * lanes * width,
                 scale.rest, z);
  });
  collect(parts, stats);
}

template <class Real>
void multiply(Team& team, const MatrixView& w, int scale_exponent, index_t width, const Real* x, Real* y) {
  check<Real>(w, width);
  const Scale<Real> scale(scale_exponent);
  for (index_t c = 0; c < width; c += kMaxBlockWidth) {
    const index_t count = std::min(index_t{kMaxBlockWidth}, width - c);
    multiply_block(team, w, false, scale, count, x + c * w.cols, y + c * w.rows, nullptr);
  }
}

std::uint64_t read_pass(Team& team, const MatrixView& w) {
  if (w.rows < 1 || w.cols < 1) throw std::invalid_argument("the matrix is empty");
  const bool swap = w.col_stride != 1 && w.row_stride == 1;
  const MatrixView a = swap ? w.transposed() : w;
  if (a.col_stride != 1) throw std::invalid_argument("read_pass needs contiguous rows or columns");
  const auto& kernels = kernels_for<double>(a.dtype);
  const bool flat = a.row_stride == a.cols;
  const index_t lines = flat ? 1 : a.rows;
  const index_t length = flat ? a.rows * a.cols : a.cols;
  const index_t per_task = std::max(kChunkEntries / length, index_t{1});  // whole lines, when they are short
  const index_t pieces = ceil_div(length, kChunkEntries);
  const index_t tasks = ceil_div(lines, per_task) * pieces;
  std::vector<std::uint64_t> sums(static_cast<std::size_t>(tasks));
  team.parallel_for(tasks, [&](index_t task, int) {
    const index_t first = task / pieces * per_task;
    const index_t start = task % pieces * kChunkEntries;
    for (index_t line = first; line < std::min(first + per_task, lines); ++line) {
      sums[static_cast<std::size_t>(task)] +=
          kernels.read(entry(a, line, start), std::min(kChunkEntries, length - start));
    }
  });
  std::uint64_t total = 0;
  for (const std::uint64_t sum : sums) total += sum;
  const auto bits = 8 * size_of(w.dtype);
  return bits == 64 ? total : total & ((std::uint64_t{1} << bits) - 1);
}

template void gram_product(Team&, const MatrixView&, Side, int, int, const float*, float*, PassStats*);
template void gram_product(Team&, const MatrixView&, Side, int, int, const double*, double*, PassStats*);
template void multiply(Team&, const MatrixView&, int, index_t, const float*, float*);
template void multiply(Team&, const MatrixView&, int, index_t, const double*, double*);

}  // namespace mpfast::cpu
