// The energies of B as a pass over B in tasks finds them.
#pragma once

#include <algorithm>
#include <optional>
#include <utility>

#include "core/buffer.hpp"
#include "core/factors.hpp"
#include "cpu/machine/dispatch.hpp"
#include "cpu/products/energy_kernels.hpp"
#include "cpu/products/product_vectors.hpp"

namespace mpfast::cpu {

// Where the energies of scale B, with its factors, are added; null where nobody asks for them.
struct EnergyTarget {
  double scale = 1;
  Factors factors;
  Squares squares = Squares::in_double;
  double* rows = nullptr;
  double* cols = nullptr;
};

// Of columns [first_col, first_col + cols) of B. A row belongs to one task, which adds to its energy at once; columns
// are summed by every task for itself, and these sums in a fixed tree, so that the result does not depend on the team.
class EnergyPass {
 public:
  EnergyPass(const EnergyTarget& target, DType panels, index_t tasks, index_t first_col, index_t cols)
      : target_(target), first_col_(first_col), cols_(cols) {
    if (target.rows == nullptr) return;
    add_ = for_active_isa([&]<class Isa>() { return energy_kernel<Isa>(panels, target.squares); });
    columns_.emplace(tasks, cols);
  }

  bool wanted() const { return columns_.has_value(); }

  // A task's sums of columns; none where nobody asks.
  Buffer<double> begin() { return wanted() ? columns_->acquire() : Buffer<double>(); }

  // `panel` holds rows of B from `row` on, and columns from `col` of the pass on.
  void add(const Panel& panel, index_t row, index_t col, Buffer<double>& columns) const {
    if (!wanted()) return;
    Factors factors;
    if (target_.factors.given()) factors = {target_.factors.rows + row, target_.factors.cols + first_col_ + col};
    add_(panel, target_.scale, factors, target_.rows + row, columns.get() + col);
  }

  void finish(index_t task, Buffer<double> columns) {
    if (wanted()) columns_->finish(task, std::move(columns));
  }

  // Once every task has finished.
  void store() const {
    if (wanted()) std::copy_n(columns_->root(), cols_, target_.cols + first_col_);
  }

 private:
  EnergyTarget target_;
  index_t first_col_;
  index_t cols_;
  AddEnergies add_ = nullptr;
  std::optional<PartialTree<double>> columns_;
};

}  // namespace mpfast::cpu
