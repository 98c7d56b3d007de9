// How a kernel is spread over the device.
#pragma once

#include <cstddef>

namespace mpfast::cuda {

struct Grid {
  unsigned x = 1;  // a multiple of cluster
  unsigned y = 1;
  unsigned threads = 256;
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;  // consecutive blocks along x
};

}  // namespace mpfast::cuda
