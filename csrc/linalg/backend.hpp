// What an algorithm of this folder asks of the machine it runs on.
//
// A backend owns the operator A (p x p, symmetric positive semidefinite: W^T W or W W^T, whichever is smaller) and the
// memory its vectors live in. Vectors come in arrays: `count` vectors of length p, each contiguous. Small matrices
// (at most a few hundred wide) are fp64, on the host, without gaps between their columns. Every operation is
// deterministic.
#pragma once

#include <concepts>

#include "core/small_matrix.hpp"
#include "core/types.hpp"
#include "random/philox.hpp"

namespace mpfast::linalg {

// What one pass over W learns besides the product; filled by the first pass of a run.
struct OperatorStats {
  double trace = 0;  // of A: the squared Frobenius norm of W as scaled by the backend
  index_t nonfinite_count = 0;
  index_t first_nonfinite_row = -1;
  index_t first_nonfinite_col = -1;
};

template <class B>
concept Backend = requires(B backend, typename B::Vectors owner, typename B::View v, typename B::View z,
                           ConstSmallView in, SmallView out, ProbeKey key, index_t count, OperatorStats* stats) {
  typename B::Real;                                   // precision of the vectors: float or double
  { backend.dim() } -> std::convertible_to<index_t>;  // p
  { backend.allocate(count) } -> std::same_as<typename B::Vectors>;
  { owner.slice(count, count) } -> std::same_as<typename B::View>;  // (first, how many)
  backend.copy(v, z);                                               // Z = V
  backend.fill_probes(v, key, count);  // v = random probes; `count`: number of the first column
  backend.apply(v, z, stats);          // Z = A V: one pass over W; stats may be null
  backend.inner(v, z, out);            // out = V^T Z, fp64 sums over chunks
  backend.gram(z, out);                // out = Z^T Z, every product and sum in fp64
  backend.subtract(v, in, z);          // Z -= V C
  backend.combine(v, in, z);           // Z = V C
  backend.transform(z, in);            // Z = Z M, M square
  { backend.mask_zero_coordinates(v, z) } -> std::convertible_to<index_t>;  // see block_lanczos.hpp
};

}  // namespace mpfast::linalg
