// From what is stored, known at run time, to the translation unit that was compiled for it.
#include <stdexcept>

#include "core/dtype.hpp"
#include "cuda/products/product_kernels.hpp"

namespace mpfast::cuda {

// Defined in product_kernels.cu, one pair of types per object file.
template <DType storage, class Real>
void launch_stored(Stream stream, ProductKind kind, const ProductPlan& plan, const ProductArguments<Real>& arguments);

template <DType storage, class Real>
bool gram_fits_stored(Stream stream, const ProductPlan& plan);

// Defined in coded_product_kernels.cu, one type per object file.
template <class Real>
void launch_coded(Stream stream, ProductKind kind, const ProductPlan& plan, const ProductArguments<Real>& arguments);

template <class Real>
bool gram_fits_coded(Stream stream, const ProductPlan& plan);

template <class Real>
bool gram_fits(Stream stream, const ProductPlan& plan, const Source& b) {
  if (b.is_coded()) return gram_fits_coded<Real>(stream, plan);
  return dispatch(b.dtype, [&]<DType storage>() {
    if constexpr (kNeedsDouble<storage> && sizeof(Real) == sizeof(float)) {
      return true;  // launch_product says what is wrong
    } else {
      return gram_fits_stored<storage, Real>(stream, plan);
    }
  });
}

template <class Real>
void launch_product(Stream stream, ProductKind kind, const ProductPlan& plan, const ProductArguments<Real>& arguments) {
  if (arguments.b.is_coded()) return launch_coded(stream, kind, plan, arguments);
  dispatch(arguments.b.dtype, [&]<DType storage>() {
    if constexpr (kNeedsDouble<storage> && sizeof(Real) == sizeof(float)) {
      throw std::invalid_argument("float64 storage needs double precision vectors, got single precision ones");
    } else {
      launch_stored<storage, Real>(stream, kind, plan, arguments);
    }
  });
}

template bool gram_fits<float>(Stream, const ProductPlan&, const Source&);
template bool gram_fits<double>(Stream, const ProductPlan&, const Source&);
template void launch_product(Stream, ProductKind, const ProductPlan&, const ProductArguments<float>&);
template void launch_product(Stream, ProductKind, const ProductPlan&, const ProductArguments<double>&);

}  // namespace mpfast::cuda
