// The energies of W: the sums of the squares of every row and of every column.
#pragma once

#include <vector>

namespace mpfast {

struct Energies {
  std::vector<double> rows;
  std::vector<double> cols;
};

}  // namespace mpfast
