// From the storage type known at run time to the translation unit that was compiled for it.
#include <stdexcept>

#include "core/dtype.hpp"
#include "cuda/products/product_kernels.hpp"

namespace mpfast::cuda {

// Defined in gram_kernels.cu and product_kernels.cu, one pair of types per object file.
template <DType storage, class Real>
index_t gram_places_stored(Stream stream, const ProductPlan& plan, const MatrixView& b);
template <DType storage, class Real>
void launch_gram_stored(Stream stream, const ProductPlan& plan, const ProductArguments<Real>& arguments);
template <DType storage, class Real>
void launch_plain_stored(Stream stream, const ProductPlan& plan, const ProductArguments<Real>& arguments);

template <class Real>
index_t gram_places(Stream stream, const ProductPlan& plan, const MatrixView& b) {
  return dispatch(b.dtype, [&]<DType storage>() -> index_t {
    if constexpr (kNeedsDouble<storage> && sizeof(Real) == sizeof(float)) {
      return 1;  // launch_product says what is wrong
    } else {
      return gram_places_stored<storage, Real>(stream, plan, b);
    }
  });
}

template <class Real>
void launch_product(Stream stream, ProductKind kind, const ProductPlan& plan, const ProductArguments<Real>& arguments) {
  dispatch(arguments.b.dtype, [&]<DType storage>() {
    if constexpr (kNeedsDouble<storage> && sizeof(Real) == sizeof(float)) {
      throw std::invalid_argument("float64 storage needs double precision vectors, got single precision ones");
    } else if (kind == ProductKind::gram) {
      launch_gram_stored<storage, Real>(stream, plan, arguments);
    } else {
      launch_plain_stored<storage, Real>(stream, plan, arguments);
    }
  });
}

template index_t gram_places<float>(Stream, const ProductPlan&, const MatrixView&);
template index_t gram_places<double>(Stream, const ProductPlan&, const MatrixView&);
template void launch_product(Stream, ProductKind, const ProductPlan&, const ProductArguments<float>&);
template void launch_product(Stream, ProductKind, const ProductPlan&, const ProductArguments<double>&);

}  // namespace mpfast::cuda
