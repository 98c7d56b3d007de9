// Products with matrices of codes. Compiled once per precision of the vectors (MPFAST_REAL).
#include "cuda/products/code_loader.hpp"
#include "cuda/products/product_pass.hpp"

namespace mpfast::cuda {

template <class Real>
bool gram_fits_coded(Stream stream, const ProductPlan& plan) {
  return cluster_fits_pass<CodeLoader, Real>(stream, plan);
}

template <class Real>
void launch_coded(Stream stream, ProductKind kind, const ProductPlan& plan, const ProductArguments<Real>& arguments) {
  launch_pass<CodeLoader>(stream, kind, plan, arguments);
}

template bool gram_fits_coded<MPFAST_REAL>(Stream, const ProductPlan&);

template void launch_coded(Stream, ProductKind, const ProductPlan&, const ProductArguments<MPFAST_REAL>&);

}  // namespace mpfast::cuda
