// Values that are read at once.
#pragma once

namespace mpfast::cuda {

template <class Value, int kCount>
struct alignas(sizeof(Value) * kCount > 16 ? 16 : sizeof(Value) * kCount) Pack {
  Value values[kCount];
};

}  // namespace mpfast::cuda
