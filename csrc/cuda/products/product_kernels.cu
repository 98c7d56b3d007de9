// Products with matrices of entries. Compiled once per storage type (MPFAST_STORAGE) and precision of the vectors
// (MPFAST_REAL), so that the builds run side by side.
#include "cuda/products/entry_loader.hpp"
#include "cuda/products/product_pass.hpp"

namespace mpfast::cuda {

template <DType storage, class Real>
bool gram_fits_stored(Stream stream, const ProductPlan& plan) {
  return cluster_fits_pass<EntryLoader<storage>, Real>(stream, plan);
}

template <DType storage, class Real>
void launch_stored(Stream stream, ProductKind kind, const ProductPlan& plan, const ProductArguments<Real>& arguments) {
  launch_pass<EntryLoader<storage>>(stream, kind, plan, arguments);
}

template bool gram_fits_stored<DType::MPFAST_STORAGE, MPFAST_REAL>(Stream, const ProductPlan&);

template void launch_stored<DType::MPFAST_STORAGE, MPFAST_REAL>(Stream, ProductKind, const ProductPlan&,
                                                                const ProductArguments<MPFAST_REAL>&);

}  // namespace mpfast::cuda
