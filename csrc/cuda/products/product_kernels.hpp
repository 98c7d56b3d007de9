// One pass over a matrix B (M x N) in device memory, the kernel that everything costs:
//
//   gram:     Z = B^T (B X)      X, Z  N x b
//   plain:    Y = B X            X  N x b,  Y  M x b
//
// With factors of the rows and columns of B, X takes those of the columns on its way into shared memory, and in a Gram
// product y those of the rows between the two halves; Z takes its own, and Y, where the partial results are added up.
//
// X is split along N into slices and B into panels of a few rows; see product_pass.hpp for what a block of threads
// does with a tile, the part of a panel in a slice. In a Gram product the slices of a panel belong to the blocks of one
// cluster, which add up y = panel X through each other's shared memory, so that B is read once. N is then at most what
// a cluster holds; where it is more, on devices without clusters, and where a cluster finds no place, the Gram product
// is two products.
#pragma once

#include "core/factors.hpp"
#include "core/types.hpp"
#include "cuda/decoding/source.hpp"
#include "cuda/machine/grid.hpp"
#include "cuda/machine/runtime.hpp"

namespace mpfast::cuda {

// What one block of threads learns about the entries that it reads: see linalg/backend.hpp. `first` is a row-major
// index into W.
struct BlockStats {
  double squares = 0;
  index_t nonfinite = 0;
  index_t first = 0;
};

enum class ProductKind { gram, plain };

// How a product is cut. A function of the shape, the types and the limits of the device, so results are the same on
// every device of a kind.
struct ProductPlan {
  int width = 0;       // vectors in shared memory: b rounded up, see product_layout.hpp
  int threads = 0;     // per block
  index_t slice = 0;   // coordinates of X per block
  index_t slices = 0;  // blocks along N: one cluster in a Gram product
  index_t panel_rows = 0;
  index_t chunk_panels = 0;  // panels that one block goes through
  index_t chunks = 0;        // blocks along M
  std::size_t shared_bytes = 0;
  bool possible = true;

  Grid grid(ProductKind kind) const {
    return {static_cast<unsigned>(slices), static_cast<unsigned>(chunks), static_cast<unsigned>(threads), shared_bytes,
            kind == ProductKind::gram ? static_cast<unsigned>(slices) : 1};
  }
};

constexpr int kMaxBlockWidth = 32;

// `real_bytes`: size of X's entries. Not `possible` when N is more than a cluster of this device holds.
ProductPlan plan_product(ProductKind kind, const Source& b, std::size_t real_bytes, int width,
                         const DeviceLimits& limits);

template <class Real>
struct ProductArguments {
  Source b;
  bool swapped = false;      // B is W^T: positions of non-finite entries are those in W
  Factors factors;           // of B, on the device; y = B X takes those of its rows twice, in a Gram product alone
  double entry_scale = 1;    // of the squares
  Real x_scale = 1;          // of X
  Real y_scale[2] = {1, 1};  // of B X, one after the other; in a plain one, applied by the sum of the partial results
  const Real* x = nullptr;   // vector c starts at x + c * x_stride
  index_t x_stride = 0;
  Real* partial = nullptr;         // gram: [chunk][c][N]    plain: [slice][c][M]
  BlockStats* stats = nullptr;     // one per block of the grid, or null
  double* row_energies = nullptr;  // [slice][M], or null
  double* col_energies = nullptr;  // [chunk][N], or null
  int width = 0;
  index_t slice = 0;
  index_t chunk_panels = 0;
};

// Whether the device has room for a cluster of the plan's Gram product with a matrix like B.
template <class Real>
bool gram_fits(Stream stream, const ProductPlan& plan, const Source& b);

// Launches the product; float64 storage needs Real = double (std::invalid_argument).
template <class Real>
void launch_product(Stream stream, ProductKind kind, const ProductPlan& plan, const ProductArguments<Real>& arguments);

}  // namespace mpfast::cuda
