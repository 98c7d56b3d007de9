#include "linalg/band_spectrum.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <ranges>
#include <stdexcept>
#include <utility>

#include "linalg/lapack.hpp"

namespace mpfast::linalg {

namespace {

// What is smaller than 2^-60 of the largest row sum is not told from zero.
constexpr int kMostHalvings = 90;

// Shifts that are tried at a time, side by side in registers.
constexpr index_t kLanes = 8;
using Lanes = std::array<double, kLanes>;

double largest_row_sum(const SymmetricBand& a) {
  std::vector<double> sums(static_cast<std::size_t>(a.order));
  for (index_t j = 0; j < a.order; ++j) {
    sums[j] += std::abs(a.at(0, j));
    for (index_t i = 1; i <= std::min(a.width, a.order - 1 - j); ++i) {
      sums[j] += std::abs(a.at(i, j));
      sums[j + i] += std::abs(a.at(i, j));
    }
  }
  return *std::ranges::max_element(sums);
}

// A - x I, of which elimination has reached a column: the lower triangle of the width + 1 columns from there on, which
// is all that it changes next.
class Window {
 public:
  Window(const SymmetricBand& a, const Lanes& shifts)
      : a_(a), shifts_(shifts), entries_(triangle(a.width + 1)), first_(static_cast<std::size_t>(a.width + 1)) {
    for (index_t row = 0; row <= a.width; ++row) enter(row, row);
  }

  const Lanes& pivot() const { return entries_.front(); }

  // Takes out the column, of which these are the pivots, and moves on by one.
  void eliminate(const Lanes& pivots, index_t column) {
    const index_t w = a_.width;
    for (index_t i = 1; i <= w; ++i) first_[i] = entries_[triangle(i)];
    for (index_t i = 1; i <= w; ++i) {
      Lanes ratio;
      for (index_t lane = 0; lane < kLanes; ++lane) ratio[lane] = first_[i][lane] / pivots[lane];
      const Lanes* const from = &entries_[triangle(i) + 1];
      Lanes* const to = &entries_[triangle(i - 1)];
      for (index_t k = 0; k < i; ++k) {
        for (index_t lane = 0; lane < kLanes; ++lane) {
          to[k][lane] = from[k][lane] - ratio[lane] * first_[k + 1][lane];
        }
      }
    }
    enter(w, column + 1 + w);
  }

 private:
  static std::size_t triangle(index_t rows) { return static_cast<std::size_t>(rows * (rows + 1) / 2); }

  // Reads a row of A into a row of the window, whose last entry is the one on the diagonal.
  void enter(index_t place, index_t row) {
    Lanes* const to = &entries_[triangle(place)];
    for (index_t k = 0; k <= place; ++k) to[k].fill(row < a_.order ? a_.at(place - k, row - place + k) : 0.0);
    for (index_t lane = 0; lane < kLanes; ++lane) to[place][lane] -= shifts_[lane];
  }

  const SymmetricBand& a_;
  const Lanes shifts_;
  std::vector<Lanes> entries_;
  std::vector<Lanes> first_;
};

std::array<index_t, kLanes> positive_pivots(const SymmetricBand& a, const Lanes& shifts, double tiny) {
  std::array<index_t, kLanes> counts{};
  Window window(a, shifts);
  for (index_t column = 0; column < a.order; ++column) {
    Lanes pivots = window.pivot();
    for (index_t lane = 0; lane < kLanes; ++lane) {
      if (!(std::abs(pivots[lane]) > tiny)) pivots[lane] = -tiny;
      counts[lane] += pivots[lane] > 0 ? 1 : 0;
    }
    window.eliminate(pivots, column);
  }
  return counts;
}

// A - x I as solve_band() takes it.
std::vector<double> shifted_band(const SymmetricBand& a, double x) {
  const index_t w = a.width, rows = 3 * w + 1;
  std::vector<double> out(static_cast<std::size_t>(rows * a.order));
  for (index_t j = 0; j < a.order; ++j) {
    out[2 * w + j * rows] = a.at(0, j) - x;
    for (index_t i = 1; i <= std::min(w, a.order - 1 - j); ++i) {
      out[2 * w + i + j * rows] = out[2 * w - i + (j + i) * rows] = a.at(i, j);
    }
  }
  return out;
}

// What stands in for a pivot of zero.
double tiny_pivot(double row_sum) {
  return std::max(row_sum * std::numeric_limits<double>::epsilon(), std::numeric_limits<double>::min());
}

}  // namespace

std::vector<index_t> eigenvalues_above(const SymmetricBand& a, std::span<const double> shifts) {
  const double tiny = tiny_pivot(largest_row_sum(a));
  std::vector<index_t> out;
  for (std::size_t first = 0; first < shifts.size(); first += kLanes) {
    const std::span<const double> some = shifts.subspan(first, std::min<std::size_t>(kLanes, shifts.size() - first));
    Lanes lanes{};
    std::ranges::copy(some, lanes.begin());
    const auto counts = positive_pivots(a, lanes, tiny);
    out.insert(out.end(), counts.begin(), counts.begin() + std::ssize(some));
  }
  return out;
}

std::vector<double> eigenvalues(const SymmetricBand& a, std::span<const index_t> numbers, double precision) {
  std::vector<double> low(numbers.size(), 0.0), high(numbers.size(), largest_row_sum(a)), middle(numbers.size());
  const auto is_wide = [&](std::size_t i) { return high[i] - low[i] > precision * high[i]; };
  const auto is_any_wide = [&] { return std::ranges::any_of(std::views::iota(std::size_t{0}, low.size()), is_wide); };
  for (int halved = 0; halved < kMostHalvings && is_any_wide(); ++halved) {
    for (std::size_t i = 0; i < low.size(); ++i) middle[i] = (low[i] + high[i]) / 2;
    const std::vector<index_t> above = eigenvalues_above(a, middle);
    for (std::size_t i = 0; i < low.size(); ++i) (above[i] > numbers[i] ? low : high)[i] = middle[i];
  }
  return low;
}

std::vector<double> end_of_eigenvector(const SymmetricBand& a, double near, index_t count) {
  if (count < 1 || count > a.order) throw std::invalid_argument("count must be between 1 and the order");
  const BlasMemory memory(1, (3 * a.width + 3) * a.order * static_cast<index_t>(sizeof(double)));
  const double step = tiny_pivot(largest_row_sum(a));
  std::vector<double> vector(static_cast<std::size_t>(a.order), 1.0);
  // Of a vector that has some of every eigenvector, the second time leaves but one, or those of equal eigenvalues.
  for (int solved = 0; solved < 2;) {
    std::vector<double> shifted = shifted_band(a, near);
    std::vector<double> image = vector;
    if (!solve_band(a.order, a.width, shifted.data(), image.data())) {
      near += step;  // an eigenvalue to the last bit
      continue;
    }
    double largest = 0, squares = 0;
    for (const double entry : image) largest = std::max(largest, std::abs(entry));
    for (const double entry : image) squares += (entry / largest) * (entry / largest);
    for (double& entry : image) entry = entry / largest / std::sqrt(squares);
    vector = std::move(image);
    ++solved;
  }
  return {vector.end() - count, vector.end()};
}

}  // namespace mpfast::linalg
