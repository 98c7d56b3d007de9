// The tiles of a square matrix's lower triangle as tasks: column by column, from the diagonal down.
#pragma once

#include "core/types.hpp"

namespace mpfast {

// How many there are of so many tiles a side.
constexpr index_t lower_tiles(index_t side) { return side * (side + 1) / 2; }

struct LowerTile {
  index_t row;
  index_t column;
};

// Which tile a task is, of `lower_tiles(side)`.
constexpr LowerTile lower_tile(index_t task, index_t side) {
  index_t column = 0;
  while (task >= side - column) task -= side - column++;
  return {column + task, column};
}

}  // namespace mpfast
