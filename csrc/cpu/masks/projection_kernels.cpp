// Compiled once per instruction set (see CMakeLists.txt), with internal linkage for all but the last function.
#include "cpu/masks/projection_kernels.hpp"

#include "cpu/machine/dispatch.hpp"
#include "cpu/machine/simd.hpp"
#include "masks/projection.hpp"

namespace mpfast::cpu::MPFAST_ISA {

namespace {

using masks::Group;
using masks::kLargestTable;
using masks::triangle;

constexpr int kRows = kLanes<float>;
using Floats = Vec<float>;
using Doubles = VecN<double, kRows>;

constexpr float kInfinity = __builtin_inff();

// One group of kRows rows, one row per lane.
struct Lanes {
  Doubles u[kLargestTable];
  Doubles prior[kLargestTable];
};

Lanes load(const ProjectionTile& tile, index_t group, int row) {
  const index_t stride = tile.groups * tile.m;
  Lanes lanes;
  for (int lane = 0; lane < kRows; ++lane) {
    const int source = row + lane < tile.rows ? row + lane : tile.rows - 1;
    const index_t at = source * stride + group * tile.m;
    for (int j = 0; j < tile.m; ++j) {
      lanes.u[j][lane] = tile.u[at + j];
      lanes.prior[j][lane] = tile.prior[at + j];
    }
  }
  return lanes;
}

void write(const ProjectionTile& tile, index_t group, int row, const unsigned (&dropped)[kRows]) {
  const index_t stride = tile.groups * tile.m;
  for (int lane = 0; lane < kRows && row + lane < tile.rows; ++lane) {
    std::uint8_t* keep = tile.keep + (row + lane) * stride + group * tile.m;
    for (int j = 0; j < tile.m; ++j) keep[j] = (dropped[lane] >> j & 1U) != 0 ? 0 : 1;
  }
}

// Two of four, in double: six sums, in lexicographic order.
void project_pairs(const ProjectionTile& tile, index_t group, int row) {
  const Lanes lanes = load(tile, group, row);
  const double* moment = tile.moments + group * 16;
  Doubles diagonal[4];
  for (int i = 0; i < 4; ++i) diagonal[i] = lanes.u[i] * (moment[i * 5] * lanes.u[i]) + lanes.prior[i];
  Doubles best{};
  Doubles winner{};
  bool first = true;
  for (int i = 0; i < 4; ++i) {
    for (int j = i + 1; j < 4; ++j) {
      const Doubles pair = 2 * (moment[i * 4 + j] * lanes.u[j]);
      const Doubles cost = (lanes.u[i] * (moment[i * 5] * lanes.u[i] + pair) + lanes.prior[i]) + diagonal[j];
      const Doubles set = Doubles{} + static_cast<double>(1 << i | 1 << j);
      const auto better = cost < best;
      winner = first ? set : (better ? set : winner);
      best = first ? cost : (better ? cost : best);
      first = false;
    }
  }
  unsigned dropped[kRows];
  for (int lane = 0; lane < kRows; ++lane) dropped[lane] = static_cast<unsigned>(winner[lane]);
  write(tile, group, row, dropped);
}

template <int kSecond>
void project_by_tables(const ProjectionTile& tile, index_t group, int row,
                       masks::TableSearch<Floats, kSecond>& search) {
  const int m = tile.m;
  const Lanes lanes = load(tile, group, row);
  const double* moment = tile.moments + group * m * m;
  Floats a[masks::kTriangle];
  Floats magnitude{};
  for (int i = 0; i < m; ++i) {
    for (int j = i; j < m; ++j) {
      const Doubles product = lanes.u[i] * (moment[i * m + j] * lanes.u[j]);
      const Doubles entry = i == j ? product + lanes.prior[i] : 2 * product;
      const Floats narrow = __builtin_convertvector(entry, Floats);
      a[triangle(m, i, j)] = narrow;
      magnitude += narrow < 0 ? -narrow : narrow;
    }
  }
  const int d = m - tile.n;
  const Floats best = search.run(a, m, d, Floats{} + kInfinity);
  unsigned dropped[kRows];
  for (int lane = 0; lane < kRows; ++lane) {
    double u[kLargestTable];
    double prior[kLargestTable];
    for (int j = 0; j < m; ++j) {
      u[j] = lanes.u[j][lane];
      prior[j] = lanes.prior[j][lane];
    }
    const Group one{u, moment, prior, m};
    if (one.free_slots(d, dropped[lane])) continue;
    dropped[lane] = search.settle(a, d, lane, best[lane], masks::kTableError * magnitude[lane], one);
  }
  write(tile, group, row, dropped);
}

template <class Function>
void for_each_register(const ProjectionTile& tile, const Function& function) {
  for (int row = 0; row < tile.rows; row += kRows) {
    for (index_t group = 0; group < tile.groups; ++group) function(group, row);
  }
}

// The second half of m slots has kSecond.
template <int kSecond>
void project_halves(const ProjectionTile& tile) {
  if constexpr (kSecond > 1) {
    if (tile.m - tile.m / 2 < kSecond) return project_halves<kSecond - 1>(tile);
  }
  masks::TableSearch<Floats, kSecond> search;
  for_each_register(tile, [&](index_t group, int row) { project_by_tables(tile, group, row, search); });
}

void project_tile(const ProjectionTile& tile) {
  if (tile.n == tile.m) {
    for (index_t i = 0; i < tile.rows * tile.groups * tile.m; ++i) tile.keep[i] = 1;
  } else if (tile.m == 4 && tile.n == 2) {
    for_each_register(tile, [&](index_t group, int row) { project_pairs(tile, group, row); });
  } else {
    project_halves<kLargestTable / 2>(tile);
  }
}

}  // namespace

}  // namespace mpfast::cpu::MPFAST_ISA

namespace mpfast::cpu {

template <>
void project<isa::MPFAST_ISA>(const ProjectionTile& tile) {
  MPFAST_ISA::project_tile(tile);
}

}  // namespace mpfast::cpu
