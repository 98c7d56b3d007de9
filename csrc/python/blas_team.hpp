// A team for work that calls BLAS.
#pragma once

#include "cpu/machine/team.hpp"
#include "linalg/lapack.hpp"
#include "python/bindings.hpp"

namespace mpfast::python {

// Within the core, calls body(team) with a team of `threads` (0: the default), or of fewer when there is not enough
// memory for BLAS to work on so many beside the `bytes` that the body allocates. Throws AllocationError when there is
// not enough for one.
template <class Body>
void with_blas_team(const InCore& core, int threads, index_t bytes, const Body& body) {
  const linalg::BlasMemory memory(cpu::resolve_threads(threads), bytes);
  cpu::Team team(memory.threads(), core.poll());
  body(team);
}

}  // namespace mpfast::python
