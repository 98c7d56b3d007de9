// Optimal brain surgeon on the columns of a layer in device memory; see reconstruct/columns.hpp.
#pragma once

#include "core/abandonable.hpp"
#include "cuda/machine/runtime.hpp"
#include "reconstruct/columns.hpp"

namespace mpfast::cuda {

// Groups of m <= 16, by the exact search. The bits of the result depend on the problem alone; the CPU's may differ by
// the order of the sums in the products between leaves, and a choice between nearly equal scores or costs with them.
//
// For each leaf of 128 columns one launch (column_kernels.hpp) and one product (products/dense_product.hpp), and with
// `smallest` besides a selection over the scores of the leaf (masks/masks.hpp), which waits for the device a few times.
// Besides its arguments it needs as much memory as the weights. `poll`, where there is one, is called before each leaf.
void obs_columns(Stream stream, const reconstruct::ColumnsProblem& problem, const Poll& poll);

}  // namespace mpfast::cuda
