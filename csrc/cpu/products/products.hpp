// Products with W that read W as it is stored, in its type or as codes, and once wherever one pass is the fastest way
// (see products.cpp).
#pragma once

#include "core/energies.hpp"
#include "core/factors.hpp"
#include "core/types.hpp"
#include "cpu/decoding/source.hpp"
#include "cpu/machine/team.hpp"
#include "linalg/backend.hpp"

namespace mpfast::cpu {

// right: Z = W^T (W X), X has one entry per column of W.   left: Z = W (W^T X), X has one entry per row of W.
enum class Side { right, left };

constexpr int kMaxBlockWidth = 32;

// Z = A X with A = (2^-scale_exponent W)^T (2^-scale_exponent W), or the other Gram side; W stands for what its
// factors, where given, make of it.
//
// X and Z hold `width` (1 to 32) vectors, each contiguous: x[c * dim + j], dim = cols (right) or rows (left). They must
// not overlap. Real is the precision of X, Z and of every accumulation; double goes with any storage, float with
// float32, float16 and bfloat16 storage (std::invalid_argument for float64 storage).
// Bitwise the same result for any size of the team.
//
// `stats` and `energies`, when not null, are filled from the same pass. The energies are those of 2^-scale_exponent W,
// good to 1e-6 where they are summed in single precision; rows and columns for which that has too little room are read
// once more, and so is W where there are many of them.
//
// In single precision factors between 2^-60 and 2^60 are safe: a product then has no more than the square of one beside
// it, unless the trace in `stats` says that it may have overflowed.
template <class Real>
void gram_product(Team& team, const Source& w, const Factors& factors, Side side, int scale_exponent, int width,
                  const Real* x, Real* z, linalg::OperatorStats* stats, Energies* energies = nullptr);

// The energies of 2^-scale_exponent W, with its factors, in a pass of their own; `stats` says where W is not finite.
// Bitwise the same result for any size of the team.
Energies energies(Team& team, const Source& w, const Factors& factors, int scale_exponent,
                  linalg::OperatorStats* stats);

// Y = 2^-scale_exponent W X (X: width vectors of length cols; Y: width vectors of length rows); for W^T X pass
// w.transposed(). Same layouts, precisions and guarantees; any width >= 1.
template <class Real>
void multiply(Team& team, const Source& w, int scale_exponent, index_t width, const Real* x, Real* y);

// Reads every entry once and does next to nothing with it: the yardstick for the products above. Returns the sum of the
// entries' bit patterns as unsigned integers of their size, modulo that size. Rows or columns must be contiguous.
std::uint64_t read_pass(Team& team, const MatrixView& w);

}  // namespace mpfast::cpu
