// Where W is not finite.
#pragma once

#include "core/types.hpp"
#include "cpu/decoding/source.hpp"
#include "linalg/backend.hpp"

namespace mpfast::cpu {

// Counts the entries that are infinite or not numbers, and notes the first of them in row-major order.
inline void find_nonfinite(const Source& w, linalg::OperatorStats& stats) {
  w.for_each_nonfinite([&](index_t row, index_t col) {
    ++stats.nonfinite_count;
    const bool before =
        row < stats.first_nonfinite_row || (row == stats.first_nonfinite_row && col < stats.first_nonfinite_col);
    if (stats.nonfinite_count > 1 && !before) return;
    stats.first_nonfinite_row = row;
    stats.first_nonfinite_col = col;
  });
}

}  // namespace mpfast::cpu
