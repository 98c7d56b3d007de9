// The inner loop of the optimal-brain-surgeon columns, over a tile of rows that stays in the first-level cache.
#pragma once

#include <cstdint>

#include "core/types.hpp"

namespace mpfast::cpu {

// Rows of a tile: two of the widest registers, so that 128 columns of weights and of errors take 32 KB.
constexpr int kColumnTileRows = 32;

// Column j of the leaf is [j * kColumnTileRows, ...) everywhere. Rows beyond the matrix are zero.
struct ColumnTile {
  float* weights = nullptr;
  float* errors = nullptr;             // written: what each column lost, divided by its entry of the factor's diagonal
  const std::uint8_t* keep = nullptr;  // per entry: 0 where the weight is dropped
  const float* factor = nullptr;       // of the leaf: entry (j, k), k > j, at j * factor_stride + k
  index_t factor_stride = 0;
  int columns = 0;               // of the leaf
  int bits = 0;                  // of a grid, 0 for none
  const float* scale = nullptr;  // with a grid: one for each row
  const float* zero = nullptr;
};

// Treats columns [first, last) of the leaf: drops or rounds each and makes up for it in all columns to its right. Two
// flops for each row and each pair of columns, and one register written: bound by the stores.
template <class Isa>
void sweep_columns(const ColumnTile& tile, int first, int last);

}  // namespace mpfast::cpu
