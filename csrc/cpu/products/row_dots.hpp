// The dot products of a few rows of B with all vectors of a product.
#pragma once

#include <algorithm>

#include "cpu/products/product_vectors.hpp"
#include "cpu/products/product_work.hpp"

namespace mpfast::cpu {

// work.factors(first vector of a group)[i * width + c] = alpha beta sum_j piece[i][j] x[c][j] for each group. X is laid
// out for the columns of B, which a piece takes whole pairs of registers of.
//
// What has to be packed is packed and multiplied in pieces that stay in the first-level cache: the first pieces in the
// place of the last ones, or all beside one another in a panel of `kept_cols` columns, which is then there as a whole.
template <class Real>
void dots_of_rows(const Product<Real>& product, const VectorLayout<Real>& layout, const Real* packed_x,
                  const Piece& rows, index_t most_rows, index_t kept_cols, Real alpha, Real beta,
                  Workspace<Real>& work) {
  const auto& kernels = product.kernels();
  const index_t most_cols = product.packs() ? kPieceColumns : rows.cols;
  for (index_t group = 0; group < layout.groups(); ++group) {
    Real* const totals = work.totals_of(layout.first_vector(group), kernels.lanes);
    std::fill_n(totals, rows.rows * layout.group_width(group) * kernels.lanes, Real{0});
  }
  for (index_t done = 0; done < rows.cols; done += most_cols) {
    const Piece piece{rows.row, rows.rows, rows.col + done, std::min(most_cols, rows.cols - done)};
    const Panel panel = kept_cols == 0 ? work.panel_of(product, piece, most_rows, most_cols)
                                       : work.panel_of(product, piece, most_rows, kept_cols, done);
    for (index_t group = 0; group < layout.groups(); ++group) {
      kernels.add_dots(panel, layout.group_width(group), packed_x + layout.offset(group, piece.col),
                       work.totals_of(layout.first_vector(group), kernels.lanes));
    }
  }
  for (index_t group = 0; group < layout.groups(); ++group) {
    const index_t first = layout.first_vector(group);
    kernels.add_up(rows.rows * layout.group_width(group), work.totals_of(first, kernels.lanes), alpha, beta,
                   work.factors(first));
  }
}

}  // namespace mpfast::cpu
