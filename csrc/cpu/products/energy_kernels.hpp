// What the products (products.cpp, compiled once) ask of the SIMD kernel of energies (energy_kernels.cpp, compiled once
// per instruction set).
#pragma once

#include "core/factors.hpp"
#include "cpu/products/product_kernels.hpp"

namespace mpfast::cpu {

// rows[i] += sum_j v_ij^2 and cols[j] += sum_i v_ij^2 with v_ij = scale panel[i][j] factors.rows[i] factors.cols[j],
// for at most kMaxPanelRows rows.
//
// Reads the panel once, from the cache where a product has just read it. The panel's rows are added to as many
// registers of columns as there are registers for; the rows' own sums stay in the first-level cache.
using AddEnergies = void (*)(const Panel& panel, double scale, const Factors& factors, double* rows, double* cols);

// How squares are formed. In double, no square of an entry of fewer than 64 bits over- or underflows. In single
// precision, for which there must be no factors, the squares of the unscaled entries are added in runs of at most 64,
// and these in double: 4 flops an entry, where the product takes 4 for each vector, and twice as many at a time.
enum class Squares { in_double, in_single_runs };

template <class Isa>
AddEnergies energy_kernel(DType storage, Squares squares);

}  // namespace mpfast::cpu
