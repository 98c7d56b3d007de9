#include "cuda/products/products.hpp"

#include <algorithm>
#include <stdexcept>
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

// Launches a product and, when asked to, collects its statistics.
template <class Real>
void run_product(Workspace<Real>& workspace, const Operand& operand, ProductKind kind, const ProductPlan& plan,
                 ProductArguments<Real>& arguments, linalg::OperatorStats* stats) {
  const index_t blocks = plan.slices * plan.chunks;
  if (stats != nullptr) arguments.stats = workspace.stats(blocks);
  launch_product(workspace.stream(), kind, plan, arguments);
  if (stats != nullptr) *stats = collect(workspace, operand, arguments.stats, blocks);
}

template <class Real, class Out>
void product_of_block(Workspace<Real>& workspace, const Operand& operand, int width, const Real* x, Out* y, Into into,
                      linalg::OperatorStats* stats) {
  const MatrixView& b = operand.b;
  const ProductPlan plan = plan_product(ProductKind::plain, b, sizeof(Real), width, workspace.limits());
  if (!plan.possible) throw Error("this device has too little shared memory per block");
  ProductArguments<Real> a = arguments_of(operand, plan, width, x);
  a.partial = workspace.partial(plan.slices * width * b.rows);
  run_product(workspace, operand, ProductKind::plain, plan, a, stats);
  sum_parts(workspace.stream(), a.partial, plan.slices, width * b.rows, static_cast<double>(a.y_scale[1]), into, y);
}

}  // namespace

template <class Real>
bool Workspace<Real>::has_room_for(const ProductPlan& plan, DType dtype) {
  if (plan.slices == 1) return true;  // a block each
  const Question question{plan.width, plan.threads, plan.slices, dtype};
  if (question != asked_) {
    answer_ = gram_fits<Real>(stream_, plan, dtype);
    asked_ = question;
  }
  return answer_;
}

template class Workspace<float>;
template class Workspace<double>;

template <class Real>
void gram_product(Workspace<Real>& workspace, const Operand& operand, int width, const Real* x, Real* z, Into into,
                  linalg::OperatorStats* stats) {
  const MatrixView& b = operand.b;
  if (width < 1 || width > kMaxBlockWidth) throw std::invalid_argument("a Gram product takes 1 to 32 vectors");
  const ProductPlan plan = plan_product(ProductKind::gram, b, sizeof(Real), width, workspace.limits());
  if (!plan.possible || !workspace.has_room_for(plan, b.dtype)) {
    Real* const y = workspace.inner(width * b.rows);
    product_of_block(workspace, operand, width, x, y, Into::store, stats);
    product_of_block<Real, Real>(workspace, operand.transposed(), width, y, z, into, nullptr);
    return;
  }
  ProductArguments<Real> a = arguments_of(operand, plan, width, x);
  a.partial = workspace.partial(plan.chunks * width * b.cols);
  run_product(workspace, operand, ProductKind::gram, plan, a, stats);
  sum_parts(workspace.stream(), a.partial, plan.chunks, width * b.cols, static_cast<double>(a.y_scale[1]), into, z);
}

template <class Real, class Out>
void multiply(Workspace<Real>& workspace, const Operand& operand, index_t width, const Real* x, Out* y, Into into) {
  for (index_t c = 0; c < width; c += kMaxBlockWidth) {
    const auto count = static_cast<int>(std::min<index_t>(kMaxBlockWidth, width - c));
    product_of_block(workspace, operand, count, x + c * operand.b.cols, y + c * operand.b.rows, into, nullptr);
  }
}

template void gram_product(Workspace<float>&, const Operand&, int, const float*, float*, Into, linalg::OperatorStats*);
template void gram_product(Workspace<double>&, const Operand&, int, const double*, double*, Into,
                           linalg::OperatorStats*);
template void multiply(Workspace<float>&, const Operand&, index_t, const float*, float*, Into);
template void multiply(Workspace<float>&, const Operand&, index_t, const float*, double*, Into);
template void multiply(Workspace<double>&, const Operand&, index_t, const double*, double*, Into);

}  // namespace mpfast::cuda
