// Compiled once per instruction set (see CMakeLists.txt), with internal linkage for all but the last function.
#include "cpu/reconstruct/column_kernels.hpp"

#include "cpu/machine/dispatch.hpp"
#include "cpu/machine/simd.hpp"
#include "reconstruct/rounding.hpp"

namespace mpfast::cpu::MPFAST_ISA {

namespace {

constexpr int kRows = kColumnTileRows;
constexpr int kRegisters = kRows / kLanes<float>;
using Floats = Vec<float>;

// What the column becomes; returns in `errors` what that costs.
void settle_column(const ColumnTile& tile, int column, float (&errors)[kRows]) {
  const float diagonal = tile.factor[column * tile.factor_stride + column];
  const float top = static_cast<float>((1 << tile.bits) - 1);
  float* const weights = tile.weights + column * kRows;
  const std::uint8_t* const keep = tile.keep + column * kRows;
  for (int row = 0; row < kRows; ++row) {
    const float before = weights[row];
    float after = tile.bits == 0 ? before : reconstruct::rounded(before, tile.scale[row], tile.zero[row], top);
    after = keep[row] != 0 ? after : 0;
    weights[row] = after;
    errors[row] = (before - after) / diagonal;
  }
}

void sweep(const ColumnTile& tile, int first, int last) {
  for (int column = first; column < last; ++column) {
    alignas(64) float errors[kRows];
    settle_column(tile, column, errors);
    __builtin_memcpy(tile.errors + column * kRows, errors, sizeof errors);
    Floats lost[kRegisters];
    for (int k = 0; k < kRegisters; ++k) lost[k] = -load<float>(errors + k * kLanes<float>);
    const float* const factor = tile.factor + column * tile.factor_stride;
    for (int later = column + 1; later < tile.columns; ++later) {
      const Floats share = broadcast<float>(factor[later]);
      float* const weights = tile.weights + later * kRows;
      for (int k = 0; k < kRegisters; ++k) {
        float* const at = weights + k * kLanes<float>;
        store<float>(at, fma(share, lost[k], load<float>(at)));
      }
    }
  }
}

}  // namespace

}  // namespace mpfast::cpu::MPFAST_ISA

namespace mpfast::cpu {

template <>
void sweep_columns<isa::MPFAST_ISA>(const ColumnTile& tile, int first, int last) {
  MPFAST_ISA::sweep(tile, first, last);
}

}  // namespace mpfast::cpu
