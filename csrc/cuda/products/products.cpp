#include "cuda/products/products.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#include "core/scale.hpp"

namespace mpfast::cuda {

namespace {

template <class Real>
ProductArguments<Real> arguments_of(const Operand& operand, const ProductPlan& plan, int width, const Real* x) {
  const Scale<Real> scale(operand.scale_exponent);
  ProductArguments<Real> a;
  a.b = operand.b;
  a.swapped = operand.swapped;
  a.factors = operand.factors;
  a.entry_scale = scale.whole;
  a.x_scale = scale.half;
  a.y_scale[0] = scale.half;
  a.y_scale[1] = scale.rest;
  a.x = x;
  a.x_stride = operand.b.cols;
  a.width = width;
  a.slice = plan.slice;
  a.chunk_panels = plan.chunk_panels;
  return a;
}

// Adds up what the blocks of a pass saw, in their order.
template <class Real>
linalg::OperatorStats collect(Workspace<Real>& workspace, const Operand& operand, const BlockStats* stats,
                              index_t blocks) {
  linalg::OperatorStats total;
  index_t first = 0;
  for (const BlockStats& block : to_host(workspace.stream(), stats, blocks)) {
    total.trace += block.squares;
    if (block.nonfinite == 0) continue;
    if (total.nonfinite_count == 0 || block.first < first) first = block.first;
    total.nonfinite_count += block.nonfinite;
  }
  if (total.nonfinite_count > 0) {
    const index_t cols = operand.swapped ? operand.b.rows : operand.b.cols;
    total.first_nonfinite_row = first / cols;
    total.first_nonfinite_col = first % cols;
  }
  return total;
}

// What a pass is to learn about W; null where nobody asks. Energies go with the rest.
struct Learned {
  linalg::OperatorStats* stats = nullptr;
  Energies* energies = nullptr;
};

// Room for the energies that the blocks of a pass find: the parts of rows and columns, and behind them their sums.
struct EnergyParts {
  index_t rows;  // of B
  index_t cols;
  index_t slices;
  index_t chunks;
  double* data = nullptr;

  index_t parts() const { return slices * rows + chunks * cols; }
  index_t size() const { return parts() + rows + cols; }
  double* row_parts() const { return data; }
  double* col_parts() const { return data + slices * rows; }
  double* sums() const { return data + parts(); }
};

// Adds them up, in the order of the blocks.
Energies collect_energies(Stream stream, const EnergyParts& parts, bool swapped) {
  sum_parts(stream, parts.row_parts(), parts.slices, parts.rows, 1.0, {}, Into::store, parts.sums());
  sum_parts(stream, parts.col_parts(), parts.chunks, parts.cols, 1.0, {}, Into::store, parts.sums() + parts.rows);
  Energies found{to_host(stream, parts.sums(), parts.rows), to_host(stream, parts.sums() + parts.rows, parts.cols)};
  if (swapped) std::swap(found.rows, found.cols);
  return found;
}

// Launches a product and, when asked to, collects what it learnt. With factors the squared norm is that of the
// energies.
template <class Real>
void run_product(Workspace<Real>& workspace, const Operand& operand, ProductKind kind, const ProductPlan& plan,
                 ProductArguments<Real>& arguments, const Learned& learned) {
  const Stream stream = workspace.stream();
  const index_t blocks = plan.slices * plan.chunks;
  EnergyParts parts{operand.b.rows, operand.b.cols, plan.slices, plan.chunks};
  if (learned.stats != nullptr) arguments.stats = workspace.stats(blocks);
  if (learned.energies != nullptr) {
    parts.data = workspace.energies(parts.size());
    arguments.row_energies = parts.row_parts();
    arguments.col_energies = parts.col_parts();
  }
  launch_product(stream, kind, plan, arguments);
  if (learned.stats != nullptr) *learned.stats = collect(workspace, operand, arguments.stats, blocks);
  if (learned.energies == nullptr) return;
  *learned.energies = collect_energies(stream, parts, operand.swapped);
  const std::vector<double>& rows = learned.energies->rows;
  if (operand.factors.given()) learned.stats->trace = std::accumulate(rows.begin(), rows.end(), 0.0);
}

template <class Real, class Out>
void product_of_block(Workspace<Real>& workspace, const Operand& operand, int width, const Real* x, Out* y, Into into,
                      const Learned& learned) {
  const Source& b = operand.b;
  const ProductPlan plan = plan_product(ProductKind::plain, b, sizeof(Real), width, workspace.limits());
  if (!plan.possible) throw Error("this device has too little shared memory per block");
  ProductArguments<Real> a = arguments_of(operand, plan, width, x);
  a.partial = workspace.partial(plan.slices * width * b.rows);
  run_product(workspace, operand, ProductKind::plain, plan, a, learned);
  sum_parts(workspace.stream(), a.partial, plan.slices, width * b.rows, static_cast<double>(a.y_scale[1]),
            {operand.factors.rows, b.rows}, into, y);
}

}  // namespace

DeviceFactors::DeviceFactors(Stream stream, const Factors& factors, const Source& w) {
  if (!factors.given()) return;
  const auto sent = [&](const double* from, index_t count) {
    DeviceBuffer<double> there(stream, count);
    copy(stream, there.get(), from, static_cast<std::size_t>(count) * sizeof(double));
    return there;
  };
  rows_ = sent(factors.rows, w.rows);
  cols_ = sent(factors.cols, w.cols);
  synchronize(stream);
}

template <class Real>
bool Workspace<Real>::has_room_for(const ProductPlan& plan, const Source& b) {
  if (plan.slices == 1) return true;  // a block each
  const Question question{plan.width, plan.threads, plan.slices, b.dtype, b.is_coded()};
  if (question != asked_) {
    answer_ = gram_fits<Real>(stream_, plan, b);
    asked_ = question;
  }
  return answer_;
}

template class Workspace<float>;
template class Workspace<double>;

template <class Real>
void gram_product(Workspace<Real>& workspace, const Operand& operand, int width, const Real* x, Real* z, Into into,
                  linalg::OperatorStats* stats, Energies* energies) {
  const Source& b = operand.b;
  if (width < 1 || width > kMaxBlockWidth) throw std::invalid_argument("a Gram product takes 1 to 32 vectors");
  Energies own;
  if (operand.factors.given() && stats != nullptr && energies == nullptr) energies = &own;
  const Learned learned{stats, energies};
  const ProductPlan plan = plan_product(ProductKind::gram, b, sizeof(Real), width, workspace.limits());
  if (!plan.possible || !workspace.has_room_for(plan, b)) {
    Real* const y = workspace.inner(width * b.rows);
    product_of_block(workspace, operand, width, x, y, Into::store, learned);
    product_of_block<Real, Real>(workspace, operand.transposed(), width, y, z, into, {});
    return;
  }
  ProductArguments<Real> a = arguments_of(operand, plan, width, x);
  a.partial = workspace.partial(plan.chunks * width * b.cols);
  run_product(workspace, operand, ProductKind::gram, plan, a, learned);
  sum_parts(workspace.stream(), a.partial, plan.chunks, width * b.cols, static_cast<double>(a.y_scale[1]),
            {operand.factors.cols, b.cols}, into, z);
}

template <class Real, class Out>
void multiply(Workspace<Real>& workspace, const Operand& operand, index_t width, const Real* x, Out* y, Into into) {
  for (index_t c = 0; c < width; c += kMaxBlockWidth) {
    const auto count = static_cast<int>(std::min<index_t>(kMaxBlockWidth, width - c));
    product_of_block(workspace, operand, count, x + c * operand.b.cols, y + c * operand.b.rows, into, {});
  }
}

template void gram_product(Workspace<float>&, const Operand&, int, const float*, float*, Into, linalg::OperatorStats*,
                           Energies*);
template void gram_product(Workspace<double>&, const Operand&, int, const double*, double*, Into,
                           linalg::OperatorStats*, Energies*);
template void multiply(Workspace<float>&, const Operand&, index_t, const float*, float*, Into);
template void multiply(Workspace<float>&, const Operand&, index_t, const float*, double*, Into);
template void multiply(Workspace<double>&, const Operand&, index_t, const double*, double*, Into);

}  // namespace mpfast::cuda
