// In which order the columns of a matrix are treated when what a column loses is made up for by those to its right.
//
// Columns are cut into leaves, narrow enough for a few rows of one to stay in the first-level cache. Within a leaf a
// column changes those after it one by one. What a stretch of leaves changes further right is one product, and the
// stretches are doubled: process(range) is process(left half), one product onto the right half, process(right half). So
// most of the arithmetic runs in products that are thousands of columns deep.
//
// Whenever a range is entered, its columns have seen everything to their left.
#pragma once

#include <algorithm>
#include <vector>

#include "core/types.hpp"

namespace mpfast::reconstruct {

constexpr index_t kLeafColumns = 128;

// Columns [first, last).
struct ColumnRange {
  index_t first = 0;
  index_t last = 0;

  index_t count() const { return last - first; }
};

// Ranges that must be entered as a whole: those of `unit` columns, or as many of these as fit into a leaf.
inline std::vector<ColumnRange> cut_into_units(index_t columns, index_t unit) {
  const index_t width = unit >= kLeafColumns ? unit : kLeafColumns / unit * unit;
  std::vector<ColumnRange> units;
  for (index_t first = 0; first < columns; first += width) units.push_back({first, std::min(first + width, columns)});
  return units;
}

// The leaves of a range, multiples of `step` columns as long as there are so many.
inline std::vector<ColumnRange> cut_into_leaves(const ColumnRange& range, index_t step) {
  const index_t width = step >= kLeafColumns ? step : kLeafColumns / step * step;
  std::vector<ColumnRange> leaves;
  for (index_t first = range.first; first < range.last; first += width) {
    leaves.push_back({first, std::min(first + width, range.last)});
  }
  return leaves;
}

// Visits ranges[begin .. end) from left to right; after every half, update(its columns, those of the other half).
template <class Visit, class Update>
void halve(const std::vector<ColumnRange>& ranges, std::size_t begin, std::size_t end, const Visit& visit,
           const Update& update) {
  if (end - begin == 1) {
    visit(ranges[begin]);
    return;
  }
  const std::size_t middle = begin + (end - begin) / 2;
  halve(ranges, begin, middle, visit, update);
  update(ColumnRange{ranges[begin].first, ranges[middle].first},
         ColumnRange{ranges[middle].first, ranges[end - 1].last});
  halve(ranges, middle, end, visit, update);
}

}  // namespace mpfast::reconstruct
