// One step of the bulge chase that turns a symmetric band matrix into a tridiagonal one (see symmetric_eigen.cpp).
#pragma once

#include "core/types.hpp"

namespace mpfast::cpu {

constexpr index_t kMaxBandwidth = 96;

// A Householder reflector I - tau v v^T, v[0] = 1.
struct Reflector {
  double tau = 0;
  alignas(64) double v[kMaxBandwidth] = {};
};

// Lower part of a symmetric band matrix with room for the bulge: entry (i, j), 0 <= i - j < 2 bandwidth, lies at
// data[i + j * stride], so every block of it is an ordinary column-major matrix with that leading dimension.
struct Band {
  double* data = nullptr;
  index_t n = 0;
  index_t bandwidth = 0;
  index_t stride = 0;
};

// Sweep s makes column s tridiagonal. With v_0 the reflector of rows s+1 .. s+b of column s, step t
//   1. applies v_t from both sides to the diagonal block D of rows and columns s+1+tb .. s+(t+1)b,
//   2. applies v_t from the right to the block E below it (b x b),
//   3. finds v_{t+1}, which clears column 0 of E, and applies it to E from the left.
// About 12 b^2 flops on 1.5 b^2 entries: the blocks (48 kB at b = 64) come from L2, u, v, w stay in L1.
// `reflector` holds v_t on entry (made by the call itself when t = 0) and v_{t+1} on return.
using ChaseStep = void (*)(const Band& band, index_t sweep, index_t step, Reflector& reflector);

template <class Isa>
void chase_step(const Band& band, index_t sweep, index_t step, Reflector& reflector);

}  // namespace mpfast::cpu
