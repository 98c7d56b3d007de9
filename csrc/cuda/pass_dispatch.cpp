// From the storage type known at run time to the translation unit that was compiled for it.
#include <stdexcept>

#include "core/entry.hpp"
#include "cuda/pass.hpp"

namespace mpfast::cuda {

// Defined in pass.cu, one pair of types per object file.
template <DType storage, class Real>
void launch_stored(Stream stream, Pass pass, const PassPlan& plan, const PassArguments<Real>& arguments);

template <class Real>
void launch_pass(Stream stream, Pass pass, const PassPlan& plan, const PassArguments<Real>& arguments) {
  dispatch(arguments.b.dtype, [&]<DType storage>() {
    if constexpr (storage == DType::float64 && sizeof(Real) == sizeof(float)) {
      throw std::invalid_argument("float64 storage needs double precision vectors, got single precision ones");
    } else {
      launch_stored<storage, Real>(stream, pass, plan, arguments);
    }
  });
}

template void launch_pass(Stream, Pass, const PassPlan&, const PassArguments<float>&);
template void launch_pass(Stream, Pass, const PassPlan&, const PassArguments<double>&);

}  // namespace mpfast::cuda
