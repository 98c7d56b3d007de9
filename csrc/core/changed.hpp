// What the core says when a matrix has not the entries it had before: nobody may write to W while it is read, but who
// does must get an error, not a search without end or a read beyond some table.
#pragma once

#include <stdexcept>

namespace mpfast {

class MatrixChanged : public std::runtime_error {
 public:
  MatrixChanged() : std::runtime_error("W changed while it was read") {}
};

}  // namespace mpfast
