// From the storage type known at run time to the translation unit that was compiled for it.
#include <stdexcept>

#include "core/dtype.hpp"
#include "cuda/products/product_kernels.hpp"

namespace mpfast::cuda {

// Defined in product_kernels.cu, one pair of types per object file.
template <DType storage, class Real>
void launch_stored(Stream stream, ProductKind kind, const ProductPlan& plan, const ProductArguments<Real>& arguments);

template <class Real>
void launch_product(Stream stream, ProductKind kind, const ProductPlan& plan, const ProductArguments<Real>& arguments) {
  dispatch(arguments.b.dtype, [&]<DType storage>() {
    if constexpr (kNeedsDouble<storage> && sizeof(Real) == sizeof(float)) {
      throw std::invalid_argument("float64 storage needs double precision vectors, got single precision ones");
    } else {
      launch_stored<storage, Real>(stream, kind, plan, arguments);
    }
  });
}

template void launch_product(Stream, ProductKind, const ProductPlan&, const ProductArguments<float>&);
template void launch_product(Stream, ProductKind, const ProductPlan&, const ProductArguments<double>&);

}  // namespace mpfast::cuda
