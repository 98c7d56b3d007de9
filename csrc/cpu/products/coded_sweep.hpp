// What the passes over W (passes.cpp, compiled once) ask of the SIMD kernel that sweeps over codes (coded_sweep.cpp,
// compiled once per instruction set).
#pragma once

#include "core/coded_matrix.hpp"
#include "cpu/products/product_kernels.hpp"

namespace mpfast::cpu {

// For rows of W from the first on, as many as it returns: those after them are to be decoded first. The vectors are
// laid out as for kernels of float32.
//
// Reads a byte, or half of one, for each entry, and decodes it in registers for either phase: decoding twice costs less
// than a way through the second-level cache, where four bytes are written and read for each entry. `scales` has
// kSweepScales floats for each register of columns.
using CodedSweep = index_t (*)(const CodedMatrix& w, const SweepVectors<float>& vectors, float* scales);

// Of a tile's rows, at most four, and of those before.
constexpr index_t kSweepScales = 8;

// Null where decoding takes so long that once is better.
template <class Isa>
CodedSweep coded_sweep(Code code);

}  // namespace mpfast::cpu
