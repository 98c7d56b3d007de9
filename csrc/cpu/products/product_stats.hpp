// What a pass over W learns about W besides the product: the parts that tasks collect, and their sum.
#pragma once

#include <vector>

#include "core/types.hpp"
#include "cpu/decoding/source.hpp"
#include "cpu/products/products.hpp"

namespace mpfast::cpu {

// linalg::OperatorStats of a part of B, where B is W or, `swapped`, W^T; positions are in the row-major order of W.
class StatsPart {
 public:
  void add_sum(double sum) { stats_.trace += sum; }

  // `part` starts at (row, col) of B.
  void add_nonfinite(const Source& part, index_t row, index_t col, bool swapped) {
    part.for_each_nonfinite([&](index_t i, index_t j) {
      ++stats_.nonfinite_count;
      note(swapped ? col + j : row + i, swapped ? row + i : col + j);
    });
  }

  void merge(const StatsPart& other) {
    stats_.trace += other.stats_.trace;
    if (other.stats_.nonfinite_count == 0) return;
    stats_.nonfinite_count += other.stats_.nonfinite_count;
    note(other.stats_.first_nonfinite_row, other.stats_.first_nonfinite_col);
  }

  const linalg::OperatorStats& stats() const { return stats_; }

 private:
  void note(index_t row, index_t col) {
    const index_t first = stats_.first_nonfinite_row;
    if (first >= 0 && (first < row || (first == row && stats_.first_nonfinite_col < col))) return;
    stats_.first_nonfinite_row = row;
    stats_.first_nonfinite_col = col;
  }

  linalg::OperatorStats stats_;
};

inline linalg::OperatorStats sum_of(const std::vector<StatsPart>& parts) {
  StatsPart all;
  for (const auto& each : parts) all.merge(each);
  return all.stats();
}

}  // namespace mpfast::cpu
