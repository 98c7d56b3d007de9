// Sturm's sequence says how many eigenvalues lie below a shift, and its derivatives say how far the next ones are. So:
// lay a grid over the spectrum, a finer one over each cell with several eigenvalues, and go on until each cell has one.
// There Laguerre's iteration, which converges cubically and passes no eigenvalue, closes the cell in about five looks.
// All looks of a round are independent: they fill vector registers, and the threads of a team. LAPACK's sterf goes from
// one eigenvalue to the next, and takes three to four times as long on one thread.
//
// T. Y. Li and Z. Zeng, "The Laguerre iteration in solving the symmetric tridiagonal eigenproblem, revisited", SIAM
// Journal on Scientific Computing 15 (1994).
#include "cpu/eigen/tridiagonal_values.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/eigen/sturm_kernels.hpp"
#include "cpu/machine/dispatch.hpp"

namespace mpfast::cpu {

namespace {

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

// A cell is closed that is at most twice this wide, in roundings of what it holds: where T is graded, small eigenvalues
// are known better than to a rounding of the largest.
constexpr double kRoundings = 2;
// What is smaller than this share of the largest is a zero.
constexpr double kZero = kEpsilon * kEpsilon;

// A cell that Laguerre's iteration has not closed after so many looks is halved, every other time.
constexpr int kPatience = 8;

// Entries times shifts of a task.
constexpr index_t kTask = 1 << 15;

// A shift, and what was seen around it: see Around.
struct Point {
  double x;
  index_t below;
  double first;
  double second;
};

// Eigenvalues number low.below ... high.below - 1 lie in it.
struct Cell {
  Point low;
  Point high;
  int looks;

  index_t count() const { return high.below - low.below; }
  double width() const { return high.x - low.x; }
  double middle() const { return low.x + width() / 2; }
  double size() const { return std::max(std::abs(low.x), std::abs(high.x)); }
};

class Search {
 public:
  // Of the diagonal d and the squares of what lies beside it, the last of which is 0; n entries each.
  Search(Team& team, const std::vector<double>& d, const std::vector<double>& squares, double* values)
      : team_(team), n_(std::ssize(d)), values_(values) {
    double low = d[0], high = d[0], before = 0;
    for (index_t i = 0; i < n_; ++i) {
      const double after = std::sqrt(squares[i]);
      low = std::min(low, d[i] - before - after);
      high = std::max(high, d[i] + before + after);
      before = after;
    }
    const double largest = std::max(std::abs(low), std::abs(high));
    zero_ = kZero * largest;
    low -= 8 * kEpsilon * largest;
    high += 8 * kEpsilon * largest;
    const double tiny = std::numeric_limits<double>::min() * std::max(1.0, *std::ranges::max_element(squares));
    matrix_ = {n_, d.data(), squares.data(), tiny};
    constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
    cells_.push_back({{low, 0, kUnknown, kUnknown}, {high, n_, kUnknown, kUnknown}, 0});
  }

  void run() {
    while (true) {
      settle();
      if (cells_.empty()) return;
      choose();
      look();
      divide();
    }
  }

 private:
  // The distance to the next eigenvalue, or less: Laguerre's step to the right, with `sign` -1 to the left. Not a
  // number where a point has not been looked at, or is all but an eigenvalue.
  double step(const Point& point, double sign) const {
    const auto n = static_cast<double>(n_);
    const double spread = (n - 1) * (n * point.second - point.first * point.first);
    return n / (sign * point.first + std::sqrt(std::max(spread, 0.0)));
  }

  double enough(const Cell& cell) const { return std::max(kRoundings * kEpsilon * cell.size(), zero_); }

  // Takes the values of closed cells.
  void settle() {
    std::erase_if(cells_, [this](const Cell& cell) {
      if (cell.width() > 2 * enough(cell)) return false;
      std::fill(values_ + cell.low.below, values_ + cell.high.below, cell.middle());
      return true;
    });
  }

  // Shifts for the next round: as many in each cell as it has eigenvalues.
  void choose() {
    shifts_.clear();
    for (Cell& cell : cells_) {
      const index_t count = cell.count();
      if (count > 1) {
        for (index_t i = 1; i <= count; ++i) {
          shifts_.push_back(cell.low.x + cell.width() * static_cast<double>(i) / static_cast<double>(count + 1));
        }
        continue;
      }
      // A little beyond where the iteration arrives: once that is at the eigenvalue, the cell closes around it.
      const double beyond = 0.9 * enough(cell), right = step(cell.low, 1), left = step(cell.high, -1);
      const double x = left < right || std::isnan(right) ? cell.high.x - left - beyond : cell.low.x + right + beyond;
      const bool is_inside = x > cell.low.x && x < cell.high.x;
      ++cell.looks;
      shifts_.push_back(is_inside && (cell.looks < kPatience || cell.looks % 2 == 0) ? x : cell.middle());
    }
  }

  void look() {
    const LookAround kernel = for_active_isa([]<class Isa>() { return &look_around<Isa>; });
    const auto count = static_cast<index_t>(shifts_.size());
    const index_t calls = (count + kShifts - 1) / kShifts;
    const index_t calls_a_task = std::max<index_t>(1, kTask / (n_ * kShifts));
    points_.resize(shifts_.size());
    team_.parallel_for(
        (calls + calls_a_task - 1) / calls_a_task,
        [&](index_t task, int) {
          for (index_t call = task * calls_a_task; call < std::min(calls, (task + 1) * calls_a_task); ++call) {
            const index_t start = call * kShifts, some = std::min(kShifts, count - start);
            Around around;
            std::fill(std::copy_n(shifts_.data() + start, some, around.x), around.x + kShifts, shifts_[start]);
            kernel(matrix_, around, some);
            for (index_t i = 0; i < some; ++i) {
              points_[start + i] = {around.x[i], around.below[i], around.first[i], around.second[i]};
            }
          }
        },
        16.0 * static_cast<double>(n_ * count));
  }

  // Cuts every cell at its points.
  void divide() {
    std::vector<Cell> finer;
    auto point = points_.begin();
    for (const Cell& cell : cells_) {
      Point low = cell.low;
      const auto keep = [&](const Point& high) {
        if (high.below > low.below) finer.push_back({low, high, cell.looks});
        low = high;
      };
      for (index_t i = 0; i < cell.count(); ++i, ++point) {
        // Rounding may count one wrong next to an eigenvalue.
        point->below = std::clamp(point->below, low.below, cell.high.below);
        keep(*point);
      }
      keep(cell.high);
    }
    cells_ = std::move(finer);
  }

  Team& team_;
  index_t n_;
  double* values_;
  Tridiagonal matrix_;
  double zero_ = 0;
  std::vector<Cell> cells_;     // ascending
  std::vector<double> shifts_;  // of a round
  std::vector<Point> points_;   // what was seen around them
};

}  // namespace

void tridiagonal_values(Team& team, index_t n, const double* d, const double* e, double* values) {
  // What couples to nothing is an eigenvalue, to the last bit: zeros among them.
  const auto couples = [&](index_t i) {
    return i >= 0 && i + 1 < n && e[i] * e[i] > kEpsilon * kEpsilon * std::abs(d[i] * d[i + 1]);
  };
  std::vector<double> diagonal, squares;
  index_t found = 0;
  for (index_t i = 0; i < n; ++i) {
    if (couples(i - 1) || couples(i)) {
      diagonal.push_back(d[i]);
      squares.push_back(couples(i) ? e[i] * e[i] : 0.0);
    } else {
      values[found++] = d[i];
    }
  }
  if (!diagonal.empty()) Search(team, diagonal, squares, values + found).run();
  std::sort(values, values + n);
}

}  // namespace mpfast::cpu
