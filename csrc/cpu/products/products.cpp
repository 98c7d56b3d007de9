// The driver of the products with W: which passes make a product. These are in passes.cpp, what a task is stands in
// product_work.hpp, the arithmetic is in product_kernels.cpp.
//
// With B = W (right) or W^T (left), Z = B^T (B X):
//  - Where rows of B are contiguous, one pass. Panels of a few rows fit the second-level cache: phase 1 forms
//    y = panel X while the panel arrives from memory, phase 2 adds panel^T y from the cache.
//  - Where columns of B are contiguous, two passes in storage order. One pass would take panels of a few columns, which
//    lie in short pieces all over memory: at 8192 x 8192, float32, the best of them took 14 ms for one vector and 17 ms
//    for four, where two passes took 11 ms and 13 ms (and a read-only pass 7 ms).
//  - Where neither are, one pass too, but a worker first packs each panel into a buffer of its own.
// Codes go the way that entries in their places would. A sweep decodes them in registers, in both of its phases; for
// more than four vectors, and where two passes are faster, they are packed: a worker decodes pieces of 16 kB, in both
// of two passes. With four vectors, float8 and one thread, 14336 x 4096 takes 7.9 ms and 4096 x 14336 takes 12.5 ms,
// where bfloat16 takes 7.6 and 12.0 ms.
//
// Factors of the rows and columns of W leave B as it is: X takes those of B's columns before the product and Z after
// it, and y = B X takes those of B's rows twice. Energies are read off the panels while these are in the cache.
#include "cpu/products/products.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/energies.hpp"
#include "core/factors.hpp"
#include "cpu/products/energy_pass.hpp"
#include "cpu/products/nonfinite.hpp"
#include "cpu/products/passes.hpp"
#include "cpu/products/product_work.hpp"

namespace mpfast::cpu {

namespace {

Energies zero_energies(const Source& w) {
  return {std::vector<double>(static_cast<std::size_t>(w.rows)), std::vector<double>(static_cast<std::size_t>(w.cols))};
}

double sum_of(const std::vector<double>& sums) { return std::accumulate(sums.begin(), sums.end(), 0.0); }

// Whether a sum of `count` squares that was formed in Real may have lost a 2^-30th part of itself or more, or is
// infinite.
template <class Real>
auto lossy(index_t count, double scale) {
  constexpr double kLeast = sizeof(Real) == sizeof(float) ? 0x1p-96 : 0x1p-980;
  return [least = kLeast * static_cast<double>(count) * scale * scale](double sum) {
    return !(sum >= least && std::isfinite(sum));
  };
}

// Forms lossy energies of rows (or columns) again, neighbours together, each in a pass over these alone. False where so
// many are lossy that a pass over all of W is quicker.
template <class Lossy>
bool mend(Team& team, const Source& w, bool rows, int scale_exponent, const Lossy& is_lossy,
          std::vector<double>& sums) {
  constexpr index_t kMost = 16;  // of so many, one
  if (std::ranges::count_if(sums, is_lossy) > std::ssize(sums) / kMost) return false;
  for (auto at = std::ranges::find_if(sums, is_lossy); at != sums.end(); at = std::find_if(at, sums.end(), is_lossy)) {
    const index_t first = at - sums.begin();
    const index_t count = std::find_if_not(at, sums.end(), is_lossy) - at;
    const Source lines = rows ? w.part(first, count, 0, w.cols) : w.part(0, w.rows, first, count);
    linalg::OperatorStats unused;
    const Energies again = energies(team, lines, {}, scale_exponent, &unused);
    at = std::ranges::copy(rows ? again.rows : again.cols, at).out;
  }
  return true;
}

// Brings squares that the kernels summed to the scale of the product, and forms those again that may be lost: of every
// row and column, or of the norm alone. False where W is better read again.
template <class Real>
bool settle(Team& team, const Product<Real>& product, int scale_exponent, bool of_lines, Energies& sums) {
  const Source w = product.swapped ? product.b.transposed() : product.b;
  const double scale = product.scale.whole;
  for (auto* each : {&sums.rows, &sums.cols}) {
    for (double& sum : *each) sum *= scale * scale;
  }
  const double total = sum_of(sums.rows);
  if (!of_lines) return !lossy<Real>(w.rows * w.cols, scale)(total);
  return std::isfinite(total) && mend(team, w, true, scale_exponent, lossy<Real>(w.cols, scale), sums.rows) &&
         mend(team, w, false, scale_exponent, lossy<Real>(w.rows, scale), sums.cols);
}

// The vectors, each entry times its factor; `out` may be the vectors themselves.
template <class Real>
void weight_entries(const double* factors, index_t length, index_t width, const Real* x, Real* out) {
  for (index_t c = 0; c < width; ++c) {
    for (index_t j = 0; j < length; ++j) out[c * length + j] = weighted(x[c * length + j], factors[j]);
  }
}

bool columns_only(const Source& b) { return !b.has_contiguous_rows() && b.transposed().has_contiguous_rows(); }

// Z = scale B^T f^2 o (scale B X) by whichever way is the fastest.
template <class Real>
void unweighted_product(Team& team, const Product<Real>& product, const Real* x, Real* z, Energies* learned) {
  const Source& b = product.b;
  // Where there are only a few very long rows, one pass has too few of them to share out among the threads.
  const bool few_rows = b.rows < kChunkRows && b.rows * b.cols > 2 * kMaxTask && b.has_contiguous_rows();
  if (!few_rows && !columns_only(b)) return one_pass(team, product, x, z, learned);
  Buffer<Real> y(b.rows, product.width, "the inner vectors of a product");
  if (few_rows) {
    multiply_by_dots(team, product, x, y.get());
  } else {
    multiply_by_axpys(team, product, x, y.get(), learned);
  }
  if (product.factors.given()) {
    for (int twice = 0; twice < 2; ++twice) {
      weight_entries(product.factors.rows, b.rows, product.width, y.get(), y.get());
    }
  }
  if (few_rows) {
    multiply_by_axpys(team, product.transposed(), y.get(), z, learned);
  } else {
    multiply_by_dots(team, product.transposed(), y.get(), z);
  }
}

// The same between the factors of the columns of B.
template <class Real>
void weighted_product(Team& team, const Product<Real>& product, const Real* x, Real* z, Energies* learned) {
  const index_t dim = product.b.cols;
  const double* const factors = product.factors.cols;
  Buffer<Real> weighted_x(dim, product.width, "the vectors of a product");
  weight_entries(factors, dim, product.width, x, weighted_x.get());
  unweighted_product(team, product, weighted_x.get(), z, learned);
  weight_entries(factors, dim, product.width, z, z);
}

}  // namespace

template <class Real>
void gram_product(Team& team, const Source& w, const Factors& factors, Side side, int scale_exponent, int width,
                  const Real* x, Real* z, linalg::OperatorStats* stats, Energies* energies) {
  check<Real>(w, width);
  if (width > kMaxBlockWidth) {
    throw std::invalid_argument("a Gram product takes at most " + std::to_string(kMaxBlockWidth) + " vectors, got " +
                                std::to_string(width));
  }
  const Product<Real> of_w{w, false, factors, Scale<Real>(scale_exponent), width};
  const Product<Real> product = side == Side::left ? of_w.transposed() : of_w;
  Energies own;
  Energies* const learned = energies == nullptr && stats != nullptr ? &own : energies;
  if (learned != nullptr) *learned = zero_energies(w);
  if (factors.given()) {
    weighted_product(team, product, x, z, learned);
  } else {
    unweighted_product(team, product, x, z, learned);
  }
  if (learned == nullptr) return;
  const bool settled = !product.sums_squares() || settle(team, product, scale_exponent, energies != nullptr, *learned);
  linalg::OperatorStats found{.trace = sum_of(learned->rows)};
  if (!settled || !std::isfinite(found.trace)) {
    *learned = mpfast::cpu::energies(team, w, factors, scale_exponent, &found);
  }
  if (stats != nullptr) *stats = found;
}

Energies energies(Team& team, const Source& w, const Factors& factors, int scale_exponent,
                  linalg::OperatorStats* stats) {
  check<double>(w, 1);
  const Product<double> of_w{w, false, factors, Scale<double>(scale_exponent), 1};
  const Product<double> product = columns_only(w) ? of_w.transposed() : of_w;
  const Source& b = product.b;
  Energies found = zero_energies(w);
  const RowBlocks blocks = product.row_blocks(b.cols);
  std::vector<Workspace<double>> workspaces(static_cast<std::size_t>(team.size()));
  EnergyTarget target = product.target(&found);
  target.in_products = false;
  EnergyPass<double> pass(target, product.kernels(), product.panel_dtype(), blocks.chunks, 0, b.cols);
  team.parallel_for(blocks.chunks, [&](index_t chunk, int worker) {
    Buffer<double> columns = pass.begin();
    const index_t last = std::min((chunk + 1) * blocks.chunk, b.rows);
    for (index_t row = chunk * blocks.chunk; row < last; row += blocks.panel) {
      const Piece piece{row, std::min(blocks.panel, last - row), 0, b.cols};
      auto& work = workspaces[static_cast<std::size_t>(worker)];
      pass.add(work.panel_of(product, piece, blocks.panel, b.cols), row, 0, columns);
    }
    pass.finish(chunk, std::move(columns));
  });
  pass.store(team);
  *stats = {.trace = sum_of(found.rows)};
  if (!std::isfinite(stats->trace)) find_nonfinite(w, *stats);
  return found;
}

template <class Real>
void multiply(Team& team, const Source& w, int scale_exponent, index_t width, const Real* x, Real* y) {
  check<Real>(w, width);
  for (index_t c = 0; c < width; c += kMaxBlockWidth) {
    const index_t count = std::min(index_t{kMaxBlockWidth}, width - c);
    const Product<Real> product{w, false, {}, Scale<Real>(scale_exponent), count};
    if (columns_only(w)) {
      multiply_by_axpys<Real>(team, product, x + c * w.cols, y + c * w.rows, nullptr);
    } else {
      multiply_by_dots<Real>(team, product, x + c * w.cols, y + c * w.rows);
    }
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
  const index_t per_task = std::max(kMinTask / length, index_t{1});  // whole lines, when they are short
  const index_t pieces = ceil_div(length, kMinTask);
  const index_t tasks = ceil_div(lines, per_task) * pieces;
  std::vector<std::uint64_t> sums(static_cast<std::size_t>(tasks));
  team.parallel_for(tasks, [&](index_t task, int) {
    const index_t first = task / pieces * per_task;
    const index_t start = task % pieces * kMinTask;
    for (index_t line = first; line < std::min(first + per_task, lines); ++line) {
      const index_t count = std::min(kMinTask, length - start);
      const MatrixView run = Source(a).part(line, 1, start, count).entries();
      sums[static_cast<std::size_t>(task)] += kernels.read(run.data, count);
    }
  });
  std::uint64_t total = 0;
  for (const std::uint64_t sum : sums) total += sum;
  const auto bits = 8 * size_of(w.dtype);
  return bits == 64 ? total : total & ((std::uint64_t{1} << bits) - 1);
}

template void gram_product(Team&, const Source&, const Factors&, Side, int, int, const float*, float*,
                           linalg::OperatorStats*, Energies*);
template void gram_product(Team&, const Source&, const Factors&, Side, int, int, const double*, double*,
                           linalg::OperatorStats*, Energies*);
template void multiply(Team&, const Source&, int, index_t, const float*, float*);
template void multiply(Team&, const Source&, int, index_t, const double*, double*);

}  // namespace mpfast::cpu
