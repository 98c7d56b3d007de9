#include "cuda/products/streamed.hpp"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <utility>

namespace mpfast::cuda {

namespace {

// Rows of B as a part of the matrix, which B may be the transpose of.
Piece panel_of(const Codes& codes, index_t first, index_t rows) {
  if (codes.swapped) return {0, codes.matrix.rows, first, rows};
  return {first, rows, 0, codes.matrix.cols};
}

}  // namespace

template <class Real>
StreamedGramProduct<Real>::StreamedGramProduct(int device, const Operand& operand, std::size_t panel_bytes)
    : operand_(operand) {
  const MatrixView& entries = operand.b.entries();
  const bool rows_contiguous = entries.col_stride == 1 && entries.row_stride >= entries.cols;
  const bool cols_contiguous = entries.row_stride == 1 && entries.col_stride >= entries.rows;
  if (!operand.b.is_coded() && !rows_contiguous && !cols_contiguous) {
    throw std::invalid_argument("a matrix that streams through a GPU must be contiguous: pass a contiguous copy");
  }
  // Whole panels of the kernels, so that only the last one has a remainder; and whole bytes of codes.
  constexpr index_t kStep = 64;
  const index_t fitting = static_cast<index_t>(panel_bytes) / bytes_of(kStep) * kStep;
  panel_rows_ = std::clamp<index_t>(fitting, kStep, (operand.b.rows + kStep - 1) / kStep * kStep);
  for (auto& pipeline : pipelines_) pipeline = std::make_unique<Pipeline>(device);
}

template <class Real>
index_t StreamedGramProduct<Real>::bytes_of(index_t rows) const {
  const Source& b = operand_.b;
  if (b.is_coded()) return DeviceCodes::bytes(b.codes().matrix, panel_of(b.codes(), 0, rows));
  return rows * b.cols * static_cast<index_t>(size_of(b.dtype));
}

template <class Real>
Operand StreamedGramProduct<Real>::panel_on_device(Pipeline& pipeline, index_t first, index_t rows) {
  const Source& b = operand_.b;
  Operand panel = operand_;
  if (panel.factors.given()) panel.factors.rows += first;
  if (b.is_coded()) {
    const Piece piece = panel_of(b.codes(), first, rows);
    panel.b = pipeline.codes.sent(pipeline.stream, b.codes().matrix, piece, b.dtype);
    if (b.codes().swapped) panel.b = panel.b.transposed();
  } else {
    panel.b = entries_on_device(pipeline, first, rows);
  }
  return panel;
}

template <class Real>
MatrixView StreamedGramProduct<Real>::entries_on_device(Pipeline& pipeline, index_t first, index_t rows) {
  const MatrixView& b = operand_.b.entries();
  const auto entry = static_cast<index_t>(size_of(b.dtype));
  char* const to = pipeline.panel.grown_to(pipeline.stream, panel_rows_ * b.cols * entry);
  const char* const from = static_cast<const char*>(b.data) + first * b.row_stride * entry;
  MatrixView there{to, b.dtype, rows, b.cols, b.cols, 1};
  if (b.row_stride == 1 && b.col_stride != 1) {
    there.row_stride = 1;
    there.col_stride = rows;
    copy_rows(pipeline.stream, to, static_cast<std::size_t>(rows * entry), from,
              static_cast<std::size_t>(b.col_stride * entry), static_cast<std::size_t>(rows * entry),
              static_cast<std::size_t>(b.cols));
  } else {
    copy_rows(pipeline.stream, to, static_cast<std::size_t>(b.cols * entry), from,
              static_cast<std::size_t>(b.row_stride * entry), static_cast<std::size_t>(b.cols * entry),
              static_cast<std::size_t>(rows));
  }
  return there;
}

template <class Real>
void StreamedGramProduct<Real>::apply(Stream stream, int width, const Real* x, Real* z, linalg::OperatorStats* stats,
                                      Energies* energies) {
  const Source& b = operand_.b;
  const index_t size = width * b.cols;
  synchronize(stream);  // x is ready
  if (stats != nullptr) *stats = {};
  Energies found;  // of B
  if (energies != nullptr) found.cols.assign(static_cast<std::size_t>(b.cols), 0.0);
  int number = 0;
  for (index_t first = 0; first < b.rows; first += panel_rows_, ++number) {
    Pipeline& pipeline = *pipelines_[static_cast<std::size_t>(number % 2)];
    const index_t rows = std::min(panel_rows_, b.rows - first);
    const Operand panel = panel_on_device(pipeline, first, rows);
    Real* const sum = pipeline.sum.grown_to(pipeline.stream, size);
    linalg::OperatorStats seen;
    Energies of_panel;
    gram_product(pipeline.workspace, panel, width, x, sum, number < 2 ? Into::store : Into::add,
                 stats == nullptr ? nullptr : &seen, energies == nullptr ? nullptr : &of_panel);
    if (stats == nullptr) continue;
    if (energies != nullptr) {
      if (operand_.swapped) std::swap(of_panel.rows, of_panel.cols);
      found.rows.insert(found.rows.end(), of_panel.rows.begin(), of_panel.rows.end());
      std::transform(of_panel.cols.begin(), of_panel.cols.end(), found.cols.begin(), found.cols.begin(), std::plus());
    }
    stats->trace += seen.trace;
    if (seen.nonfinite_count == 0) continue;
    // Positions are in the panel; the first in row-major order of W is the least.
    const index_t row = seen.first_nonfinite_row + (operand_.swapped ? 0 : first);
    const index_t col = seen.first_nonfinite_col + (operand_.swapped ? first : 0);
    const bool earlier =
        row < stats->first_nonfinite_row || (row == stats->first_nonfinite_row && col < stats->first_nonfinite_col);
    if (stats->nonfinite_count == 0 || earlier) {
      stats->first_nonfinite_row = row;
      stats->first_nonfinite_col = col;
    }
    stats->nonfinite_count += seen.nonfinite_count;
  }
  if (energies != nullptr) {
    if (operand_.swapped) std::swap(found.rows, found.cols);
    *energies = std::move(found);
  }
  const int used = std::min(number, 2);
  for (int i = 0; i < used; ++i) synchronize(pipelines_[static_cast<std::size_t>(i)]->stream);
  for (int i = 0; i < used; ++i) {
    const Pipeline& pipeline = *pipelines_[static_cast<std::size_t>(i)];
    sum_parts(stream, pipeline.sum.get(), 1, size, 1.0, {}, i == 0 ? Into::store : Into::add, z);
  }
  synchronize(stream);  // the pipelines' sums are free again
}

template class StreamedGramProduct<float>;
template class StreamedGramProduct<double>;

}  // namespace mpfast::cuda
