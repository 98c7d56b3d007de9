// The passes over B that products.cpp makes products of, and in what order partial results of a pass meet. Vectors lie
// one after the other, and `learned`, where it is not null, gets the energies of W on the way.
#pragma once

#include "core/energies.hpp"
#include "cpu/machine/team.hpp"
#include "cpu/products/product_work.hpp"

namespace mpfast::cpu {

// Z = scale B^T f^2 o (scale B X) in one pass over B, by rows, where f are the factors of the rows.
template <class Real>
void one_pass(Team& team, const Product<Real>& product, const Real* x, Real* z, Energies* learned);

// Y = scale B X, one dot product per row of B. Long rows are cut, and the pieces' sums added in order.
template <class Real>
void multiply_by_dots(Team& team, const Product<Real>& product, const Real* x, Real* y);

// Y = scale A^T X, where rows of A are contiguous, of entries or of codes. `product.b` is A^T.
template <class Real>
void multiply_by_axpys(Team& team, const Product<Real>& product, const Real* x, Real* y, Energies* learned);

}  // namespace mpfast::cpu
