// What whoever reads coded matrices asks of the SIMD kernel that decodes them (code_kernels.cpp, compiled once per
// instruction set).
#pragma once

#include "core/coded_matrix.hpp"
#include "core/types.hpp"

namespace mpfast::cpu {

// target[i * target_stride + j] = entry (row + i, col + j) of a piece. Value times scale is rounded to single precision
// whatever Real is, so that every reader sees the same number; NaN and infinities come out as such.
//
// Reads a byte, or half of one, for each entry and writes a Real. Codes become halves, 16 bits each, which the machine
// widens, subnormal ones too: some seven operations for every register of floats, where a product takes four for each
// vector.
template <class Real>
using Decode = void (*)(const CodedMatrix& w, const Piece& piece, Real* target, index_t target_stride);

template <class Isa, class Real>
Decode<Real> decode_kernel(Code code);

}  // namespace mpfast::cpu
