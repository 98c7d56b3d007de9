#include "cpu/eigen/semidefinite.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "core/lower_tiles.hpp"
#include "core/small_matrix.hpp"
#include "linalg/lapack.hpp"

namespace mpfast::cpu {

namespace {

// Columns between two updates of the whole: they stay in the second-level cache.
constexpr index_t kPanel = 64;
// Rows and columns of a tile of an update.
constexpr index_t kTile = 256;
// A pivot has to be larger than that many times the most negative diagonal entry: what made that entry negative has
// done the same to the pivot.
constexpr double kAboveNoise = 8;

std::size_t position(index_t i) { return static_cast<std::size_t>(i); }

class Elimination {
 public:
  Elimination(index_t n, const double* a) : n_(n), spent_(position(n)) {
    root_.ld = padded_leading_dimension(n);
    root_.lower = Buffer<double>(root_.ld, n, "the root of a second moment");
    root_.order.resize(position(n));
    std::iota(root_.order.begin(), root_.order.end(), index_t{0});
    for (index_t i = 0; i < n; ++i) {
      for (index_t j = 0; j <= i; ++j) at(i, j) = a[i * n + j];
    }
  }

  SemidefiniteRoot run(Team& team) {
    for (index_t first = 0; first < n_; first = root_.rank) {
      const index_t last = std::min(first + kPanel, n_);
      const bool ended = !eliminate(first, last);
      update(team, first, root_.rank);
      if (ended) break;
      team.check_interrupt();
    }
    for (index_t j = root_.rank; j < n_; ++j) {
      for (index_t i = j; i < n_; ++i) root_.rest = std::max(root_.rest, std::abs(at(i, j)));
    }
    return std::move(root_);
  }

 private:
  double& at(index_t i, index_t j) { return root_.lower.get()[i + j * root_.ld]; }

  // Columns first to last, as long as there is a pivot; whether there was one for each.
  bool eliminate(index_t first, index_t last) {
    std::fill(spent_.begin() + first, spent_.end(), 0.0);
    for (index_t j = first; j < last; ++j) {
      const index_t pivot = largest(j);
      if (pivot < 0) return false;
      swap(j, pivot);
      const double root = std::sqrt(at(j, j) - spent_[position(j)]);
      at(j, j) = root;
      for (index_t k = first; k < j; ++k) {
        const double factor = at(j, k);
        for (index_t i = j + 1; i < n_; ++i) at(i, j) -= factor * at(i, k);
      }
      for (index_t i = j + 1; i < n_; ++i) {
        at(i, j) /= root;
        spent_[position(i)] += at(i, j) * at(i, j);
      }
      root_.rank = j + 1;
    }
    return true;
  }

  // The largest remaining diagonal entry, the first of equal ones; -1 where it may be rounding.
  index_t largest(index_t from) const {
    const double* const lower = root_.lower.get();
    index_t best = from;
    double most = -std::numeric_limits<double>::infinity();
    double least = 0;
    for (index_t i = from; i < n_; ++i) {
      const double left = lower[i + i * root_.ld] - spent_[position(i)];
      least = std::min(least, left);
      if (left > most) {
        most = left;
        best = i;
      }
    }
    const double rounding = 4 * static_cast<double>(n_) * std::numeric_limits<double>::epsilon();
    return most > std::max(rounding, -kAboveNoise * least) ? best : -1;
  }

  // Rows and columns i and p >= i change places.
  void swap(index_t i, index_t p) {
    if (i == p) return;
    for (index_t k = 0; k < i; ++k) std::swap(at(i, k), at(p, k));
    std::swap(at(i, i), at(p, p));
    for (index_t k = i + 1; k < p; ++k) std::swap(at(k, i), at(p, k));
    for (index_t k = p + 1; k < n_; ++k) std::swap(at(k, i), at(k, p));
    std::swap(spent_[position(i)], spent_[position(p)]);
    std::swap(root_.order[position(i)], root_.order[position(p)]);
  }

  // Takes the products of the columns first to last from what is below and to the right of them.
  void update(Team& team, index_t first, index_t last) {
    const index_t width = last - first;
    const index_t tiles = ceil_div(n_ - last, kTile);
    if (width == 0) return;
    team.parallel_for(lower_tiles(tiles), [&](index_t task, int) {
      const auto [row, column] = lower_tile(task, tiles);
      const index_t i = last + row * kTile;
      const index_t j = last + column * kTile;
      const index_t height = std::min(kTile, n_ - i);
      if (i == j) {
        linalg::syrk_lower(height, width, -1.0, &at(i, first), root_.ld, 1.0, &at(i, j), root_.ld);
      } else {
        linalg::gemm(false, true, height, kTile, width, -1.0, &at(i, first), root_.ld, &at(j, first), root_.ld, 1.0,
                     &at(i, j), root_.ld);
      }
    });
  }

  index_t n_;
  SemidefiniteRoot root_;
  std::vector<double> spent_;  // by entry of the diagonal, what the columns since the last update take from it
};

}  // namespace

SemidefiniteRoot semidefinite_root(Team& team, index_t n, const double* a) { return Elimination(n, a).run(team); }

}  // namespace mpfast::cpu
