#include "cpu/products/passes.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/products/energy_pass.hpp"
#include "cpu/products/product_vectors.hpp"
#include "cpu/products/row_dots.hpp"

namespace mpfast::cpu {

namespace {

// `width` entries of each of some rows, between the halves of a product.
template <class Real>
void weight_rows(const double* row_factors, index_t rows, index_t width, Real* y) {
  if (row_factors == nullptr) return;
  for (index_t i = 0; i < rows; ++i) {
    for (index_t c = 0; c < width; ++c) y[i * width + c] = weighted_twice(y[i * width + c], row_factors[i]);
  }
}

// Whether a pass sweeps over its rows, and how: over those of one group of vectors, as they lie in memory.
template <class Real>
class Sweep {
 public:
  Sweep(const Product<Real>& product, const EnergyPass<Real>& energies) : product_(product), energies_(energies) {
    if (product.width > kGroupWidth) return;
    if (!product.packs()) {
      over_entries_ = product.kernels().sweep;
    } else if (product.b.is_coded() && !energies.reads_panels()) {
      if constexpr (sizeof(Real) == sizeof(float)) {
        over_codes_ = for_active_isa([&]<class Isa>() { return coded_sweep<Isa>(product.b.codes().type); });
      }
    }
  }

  // z += rows^T (rows x) and the energies of rows, for as many rows from the first one on as it returns.
  index_t operator()(index_t first, index_t count, const VectorLayout<Real>& layout, const Real* x, Real* z,
                     Buffer<double>& column_energies, Workspace<Real>& work) const {
    const auto vectors_of = [&](index_t row) {
      const Squares squares = energies_.for_kernels(row, 0, column_energies);
      return SweepVectors<Real>{product_.width,
                                x,
                                product_.scale.half,
                                product_.scale.rest,
                                product_.row_factors(row),
                                z,
                                squares,
                                squares.wanted() ? work.column_runs(layout.padded()) : nullptr};
    };
    if constexpr (sizeof(Real) == sizeof(float)) {
      if (over_codes_ != nullptr) {
        const index_t registers = layout.padded() / product_.kernels().lanes;
        return over_codes_(rows_of(first, count).codes(), vectors_of(first), work.scales_of(registers));
      }
    }
    if (over_entries_ == nullptr) return 0;
    // Energies that the kernels leave are read off rows that the cache still holds.
    const index_t step = energies_.reads_panels() ? kMaxPanelRows : count;
    for (index_t done = 0; done < count; done += step) {
      const index_t row = first + done;
      const Panel panel = panel_at(rows_of(row, std::min(step, count - done)).entries());
      over_entries_(panel, vectors_of(row));
      energies_.add(panel, row, 0, column_energies);
    }
    return count;
  }

 private:
  Source rows_of(index_t first, index_t count) const { return product_.b.part(first, count, 0, product_.b.cols); }

  const Product<Real>& product_;
  const EnergyPass<Real>& energies_;
  decltype(ProductKernels<Real>::sweep) over_entries_ = nullptr;
  CodedSweep over_codes_ = nullptr;
};

}  // namespace

template <class Real>
void one_pass(Team& team, const Product<Real>& product, const Real* x, Real* z, Energies* learned) {
  const Source& b = product.b;
  const auto& kernels = product.kernels();
  const VectorLayout<Real> layout(kernels, product.width, b.cols);
  Buffer<Real> packed_x(layout.size(), 1, "the vectors of a product");
  layout.from_plain(team, x, product.scale.half, packed_x.get());
  const RowBlocks blocks = product.row_blocks(b.cols);

  std::vector<Workspace<Real>> workspaces(static_cast<std::size_t>(team.size()));
  PartialTree<Real> tree(blocks.chunks, layout.size());
  EnergyPass<Real> energies(product.target(learned), kernels, product.panel_dtype(), blocks.chunks, 0, b.cols);
  const Sweep<Real> sweep(product, energies);
  team.parallel_for(blocks.chunks, [&](index_t chunk, int worker) {
    auto& work = workspaces[static_cast<std::size_t>(worker)];
    Buffer<Real> partial = tree.acquire();
    Buffer<double> column_energies = energies.begin();
    const index_t first = chunk * blocks.chunk;
    const index_t last = std::min(first + blocks.chunk, b.rows);
    const index_t swept = sweep(first, last - first, layout, packed_x.get(), partial.get(), column_energies, work);
    for (index_t row = first + swept; row < last; row += blocks.panel) {
      const Piece rows{row, std::min(blocks.panel, last - row), 0, b.cols};
      dots_of_rows(product, layout, packed_x.get(), rows, blocks.panel, b.cols, product.scale.half, product.scale.rest,
                   work);
      const Panel panel = work.whole_panel(product, rows, b.cols);
      for (index_t group = 0; group < layout.groups(); ++group) {
        const index_t width = layout.group_width(group);
        Real* const y = work.factors(layout.first_vector(group));
        weight_rows(product.row_factors(row), panel.rows, width, y);
        kernels.axpy(panel, width, y, partial.get() + layout.offset(group, 0),
                     group == 0 ? energies.for_kernels(row, 0, column_energies) : Squares{});
      }
      energies.add(panel, row, 0, column_energies);
    }
    energies.finish(chunk, std::move(column_energies));
    tree.finish(chunk, std::move(partial));
  });
  layout.to_plain(team, tree.root(), product.scale.rest, z);
  energies.store(team);
}

template <class Real>
void multiply_by_dots(Team& team, const Product<Real>& product, const Real* x, Real* y) {
  const Source& b = product.b;
  const auto& kernels = product.kernels();
  const VectorLayout<Real> layout(kernels, product.width, b.cols);
  Buffer<Real> packed_x(layout.size(), 1, "the vectors of a product");
  layout.from_plain(team, x, product.scale.half, packed_x.get());

  const index_t rows_per_task =
      std::clamp(kMinTask / b.cols / kPanelRowStep * kPanelRowStep, kPanelRowStep, kMaxPanelRows);
  const index_t row_tasks = ceil_div(b.rows, rows_per_task);
  const index_t cols_per_task = std::min(kColumnBlock, layout.padded());
  const index_t col_tasks = ceil_div(b.cols, cols_per_task);
  const index_t panel_rows = product.packs() ? kPanelRowStep : rows_per_task;
  Buffer<Real> partial(col_tasks * product.width, b.rows, "partial sums of a product");
  std::vector<Workspace<Real>> workspaces(static_cast<std::size_t>(team.size()));
  team.parallel_for(row_tasks * col_tasks, [&](index_t task, int worker) {
    auto& work = workspaces[static_cast<std::size_t>(worker)];
    const index_t row = task / col_tasks * rows_per_task;
    const index_t rows = std::min(rows_per_task, b.rows - row);
    const index_t col = task % col_tasks * cols_per_task;
    const index_t cols = std::min(cols_per_task, b.cols - col);
    for (index_t first = row; first < row + rows; first += panel_rows) {
      const index_t count = std::min(panel_rows, row + rows - first);
      dots_of_rows(product, layout, packed_x.get(), {first, count, col, cols}, panel_rows, 0, product.scale.rest,
                   Real{1}, work);
      for (index_t group = 0; group < layout.groups(); ++group) {
        const index_t width = layout.group_width(group);
        const Real* const found = work.factors(layout.first_vector(group));
        for (index_t c = 0; c < width; ++c) {
          const index_t vector = task % col_tasks * product.width + layout.first_vector(group) + c;
          Real* target = partial.get() + vector * b.rows + first;
          for (index_t i = 0; i < count; ++i) target[i] = found[i * width + c];
        }
      }
    }
  });
  const index_t size = product.width * b.rows;
  std::copy_n(partial.get(), size, y);
  for (index_t k = 1; k < col_tasks; ++k) {
    for (index_t i = 0; i < size; ++i) y[i] += partial.get()[k * size + i];
  }
}

template <class Real>
void multiply_by_axpys(Team& team, const Product<Real>& product, const Real* x, Real* y, Energies* learned) {
  const Product<Real> of_a = product.transposed();
  const Source& a = of_a.b;
  const auto& kernels = of_a.kernels();
  const VectorLayout<Real> layout(kernels, product.width, a.cols);
  const index_t block = std::min(kColumnBlock, layout.padded());
  const index_t blocks = ceil_div(a.cols, block);
  const RowBlocks cut = of_a.row_blocks(block);
  const index_t panel_cols = of_a.packs() ? kPieceColumns : block;
  Buffer<Real> sum(layout.size(), 1, "the vectors of a product");
  std::vector<Workspace<Real>> workspaces(static_cast<std::size_t>(team.size()));
  for (index_t at = 0; at < blocks; ++at) {
    const index_t col = at * block;
    const index_t cols = std::min(block, a.cols - col);
    const VectorLayout<Real> piece_layout(kernels, product.width, cols);
    PartialTree<Real> tree(cut.chunks, piece_layout.size());
    EnergyPass<Real> energies(of_a.target(learned), kernels, of_a.panel_dtype(), cut.chunks, col, cols);
    team.parallel_for(cut.chunks, [&](index_t chunk, int worker) {
      auto& work = workspaces[static_cast<std::size_t>(worker)];
      Buffer<Real> partial = tree.acquire();
      Buffer<double> column_energies = energies.begin();
      const index_t first = chunk * cut.chunk;
      const index_t last = std::min(first + cut.chunk, a.rows);
      for (index_t row = first; row < last; row += kAxpyRows) {
        const index_t rows = std::min(kAxpyRows, last - row);
        for (index_t group = 0; group < layout.groups(); ++group) {
          const index_t width = layout.group_width(group);
          Real* factors = work.factors(layout.first_vector(group));
          for (index_t i = 0; i < rows; ++i) {
            for (index_t c = 0; c < width; ++c) {
              factors[i * width + c] = x[(layout.first_vector(group) + c) * a.rows + row + i] * product.scale.half;
            }
          }
        }
        for (index_t left = 0; left < cols; left += panel_cols) {
          const Piece piece{row, rows, col + left, std::min(panel_cols, cols - left)};
          const Panel panel = work.panel_of(of_a, piece, kAxpyRows, panel_cols);
          for (index_t group = 0; group < layout.groups(); ++group) {
            kernels.axpy(panel, layout.group_width(group), work.factors(layout.first_vector(group)),
                         partial.get() + piece_layout.offset(group, left),
                         group == 0 ? energies.for_kernels(row, left, column_energies) : Squares{});
          }
          energies.add(panel, row, left, column_energies);
        }
      }
      energies.finish(chunk, std::move(column_energies));
      tree.finish(chunk, std::move(partial));
    });
    energies.store(team);
    for (index_t group = 0; group < layout.groups(); ++group) {
      std::copy_n(tree.root() + piece_layout.offset(group, 0), piece_layout.padded() * layout.group_width(group),
                  sum.get() + layout.offset(group, col));
    }
  }
  layout.to_plain(team, sum.get(), product.scale.rest, y);
}

template void one_pass(Team&, const Product<float>&, const float*, float*, Energies*);
template void multiply_by_dots(Team&, const Product<float>&, const float*, float*);
template void multiply_by_axpys(Team&, const Product<float>&, const float*, float*, Energies*);

template void one_pass(Team&, const Product<double>&, const double*, double*, Energies*);
template void multiply_by_dots(Team&, const Product<double>&, const double*, double*);
template void multiply_by_axpys(Team&, const Product<double>&, const double*, double*, Energies*);

}  // namespace mpfast::cpu
