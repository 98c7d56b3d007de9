// Quantised weights as numbers: codes looked up in a table, times the scale of their block.
#pragma once

#include "core/types.hpp"

namespace mpfast::cpu {

// Rows of codes, without gaps between them.
struct ScaledCodes {
  const std::uint8_t* codes = nullptr;
  index_t rows = 0;
  index_t bytes = 0;             // of a row
  const float* table = nullptr;  // `values` entries for each of 256 codes
  index_t values = 1;            // 1, or 2 where a byte holds two codes
  const float* scales = nullptr;
  index_t width = 1;  // entries of a row that share a scale; the last ones may be fewer

  index_t cols() const { return bytes * values; }
  index_t blocks() const { return (cols() + width - 1) / width; }
};

// numbers[i][j] = table[code of (i, j)] scales[i][j / width], in the order of memory.
void decode(const ScaledCodes& stored, float* numbers);

}  // namespace mpfast::cpu
