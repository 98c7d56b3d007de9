// The energies of B as a pass over B in tasks finds them.
#pragma once

#include <algorithm>
#include <optional>
#include <utility>

#include "core/buffer.hpp"
#include "core/factors.hpp"
#include "cpu/machine/dispatch.hpp"
#include "cpu/machine/team.hpp"
#include "cpu/products/energy_kernels.hpp"
#include "cpu/products/product_vectors.hpp"

namespace mpfast::cpu {

// Where the energies of B are added; null where nobody asks.
struct EnergyTarget {
  // Whether the kernels of the product add up the squares of the entries as they are, while they multiply. If not, the
  // energies of scale B, with its factors, are read off every panel after that.
  bool in_products = false;
  double scale = 1;
  Factors factors;
  double* rows = nullptr;
  double* cols = nullptr;
};

// Of columns [first_col, first_col + cols) of B. A row belongs to one task, which adds to its energy at once; columns
// are summed by every task for itself, and these sums in a fixed tree, so that the result does not depend on the team.
template <class Real>
class EnergyPass {
 public:
  EnergyPass(const EnergyTarget& target, const ProductKernels<Real>& kernels, DType panels, index_t tasks,
             index_t first_col, index_t cols)
      : target_(target), first_col_(first_col), layout_(kernels, 1, cols) {
    if (target.rows == nullptr) return;
    columns_.emplace(tasks, layout_.padded());
    if (target.in_products) return;
    add_ = for_active_isa([&]<class Isa>() { return energy_kernel<Isa>(panels); });
  }

  // A task's sums of columns; none where nobody asks.
  Buffer<double> begin() { return columns_ ? columns_->acquire() : Buffer<double>(); }

  // Whether panels are read for energies after the product.
  bool reads_panels() const { return add_ != nullptr; }

  // Where the kernels of the product add up squares, of rows from `row` on and of columns from `col` of the pass on,
  // whole pairs of registers before it; nowhere if they do not.
  Squares for_kernels(index_t row, index_t col, Buffer<double>& columns) const {
    if (!target_.in_products) return {};
    return {target_.rows + row, columns.get() + col};
  }

  // What they do not, of a panel that holds rows of B from `row` on and columns from `col` of the pass on.
  void add(const Panel& panel, index_t row, index_t col, Buffer<double>& columns) const {
    if (add_ == nullptr) return;
    Factors factors;
    if (target_.factors.given()) factors = {target_.factors.rows + row, target_.factors.cols + first_col_ + col};
    add_(panel, target_.scale, factors, target_.rows + row, columns.get() + col);
  }

  void finish(index_t task, Buffer<double> columns) {
    if (columns_) columns_->finish(task, std::move(columns));
  }

  // Once every task has finished.
  void store(Team& team) const {
    if (!columns_) return;
    double* const cols = target_.cols + first_col_;
    if (target_.in_products) return layout_.to_plain(team, columns_->root(), 1.0, cols);
    std::copy_n(columns_->root(), layout_.length(), cols);
  }

 private:
  EnergyTarget target_;
  index_t first_col_;
  VectorLayout<Real> layout_;
  AddEnergies add_ = nullptr;
  std::optional<PartialTree<double>> columns_;
};

}  // namespace mpfast::cpu
