// What the products (products.cpp, compiled once) ask of the SIMD kernel of energies (energy_kernels.cpp, compiled once
// per instruction set).
#pragma once

#include "core/factors.hpp"
#include "cpu/products/product_kernels.hpp"

namespace mpfast::cpu {

// rows[i] += sum_j v_ij^2 and cols[j] += sum_i v_ij^2 with v_ij = scale panel[i][j] factors.rows[i] factors.cols[j],
// for at most kMaxPanelRows rows.
//
// All in double, where no square of an entry of fewer than 64 bits over- or underflows. Reads the panel once, from the
// cache where a product has just read it. The panel's rows are added to as many registers of columns as there are
// registers for; the rows' own sums stay in the first-level cache.
using AddEnergies = void (*)(const Panel& panel, double scale, const Factors& factors, double* rows, double* cols);

template <class Isa>
AddEnergies energy_kernel(DType storage);

}  // namespace mpfast::cpu
