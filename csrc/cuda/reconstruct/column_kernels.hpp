// Launches of the kernels for the columns; columns.cpp is the algorithm around them.
#pragma once

#include <cstdint>

#include "core/types.hpp"
#include "cuda/machine/runtime.hpp"
#include "reconstruct/columns.hpp"

namespace mpfast::cuda {

// One leaf. Everything is in device memory.
struct LeafTask {
  reconstruct::ColumnsProblem problem;
  reconstruct::ColumnRange leaf;
  float* errors = nullptr;               // as the weights: written, what each column lost over its U_jj
  const std::uint8_t* chosen = nullptr;  // (smallest) what stays of the leaf, row by row
  const double* costs = nullptr;         // (groups) m x m for each group, see linalg/group_costs.hpp
};

// Chooses (groups), drops and rounds the columns of a leaf one by one and makes up for it in those to their right
// within the leaf; one launch. A block has 32 rows of the leaf and its part of U in shared memory, eight threads for
// each row. Reads and writes each weight of the leaf once, and writes each error once; 128 flops per weight. The fused
// multiplications and additions are those of cpu/reconstruct/column_kernels.hpp, in the same order: the same bits.
void settle_leaf(Stream stream, const LeafTask& task);

// scores (rows x leaf.count()) = w / U_jj.
void score_leaf(Stream stream, const reconstruct::ColumnsProblem& problem, const reconstruct::ColumnRange& leaf,
                float* scores);

// The grids of columns `whole`, wider than a leaf, that share one in each row.
void set_grids(Stream stream, const reconstruct::ColumnsProblem& problem, const reconstruct::ColumnRange& whole);

}  // namespace mpfast::cuda
