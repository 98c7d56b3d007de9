// Compiled once per instruction set (see CMakeLists.txt).
#include "cpu/eigen/sturm_kernels.hpp"

#include "cpu/machine/dispatch.hpp"
#include "cpu/machine/simd.hpp"

namespace mpfast::cpu::MPFAST_ISA {

namespace {

using Doubles = Vec<double>;
constexpr int kAtATime = kLanes<double>;
using Counts = VecN<std::int64_t, kAtATime>;

// A pivot waits for the one before. So many vectors of shifts go side by side that the division never rests; where they
// are more than the registers, the others wait in the cache, which costs less.
constexpr int kChains = kAtATime >= 8 ? 4 : 8;

// Of the rows so far, for a vector of shifts.
struct Chain {
  Doubles x;
  Doubles share, slope, bend;  // of the last row: e^2 / q, q' / q and the derivative of that
  Counts below;
  Doubles first, second;  // sums of slope and bend
};

void look(const Tridiagonal& matrix, Around& around, index_t start) {
  const Doubles tiny = broadcast(matrix.tiny), one = broadcast(1.0), zero{};
  Chain chains[kChains];
  unroll<kChains>([&]<int c>() {
    chains[c] = {load_as<Doubles>(around.x + start + c * kAtATime), zero, zero, zero, Counts{}, zero, zero};
  });
  for (index_t i = 0; i < matrix.n; ++i) {
    const Doubles diagonal = broadcast(matrix.diagonal[i]);
    const Doubles square = broadcast(matrix.squares[i]);
    unroll<kChains>([&]<int c>() {
      Chain& chain = chains[c];
      Doubles pivot = (diagonal - chain.x) - chain.share;
      pivot = (pivot < tiny) & (pivot > -tiny) ? -tiny : pivot;
      chain.below -= pivot < zero;  // true is -1
      const Doubles inverse = one / pivot;
      const Doubles slope = fma(chain.share, chain.slope, -one) * inverse;
      const Doubles curved = chain.share * fma(-chain.slope, chain.slope, chain.bend) * inverse;
      chain.bend = fma(-slope, slope, curved);
      chain.slope = slope;
      chain.share = square * inverse;
      chain.first += chain.slope;
      chain.second += chain.bend;
    });
  }
  unroll<kChains>([&]<int c>() {
    const index_t place = start + c * kAtATime;
    __builtin_memcpy(around.below + place, &chains[c].below, sizeof(Counts));
    // The logarithmic derivative of det(T - x I) is the sum of 1 / (x - lambda).
    store(around.first + place, -chains[c].first);
    store(around.second + place, -chains[c].second);
  });
}

}  // namespace

}  // namespace mpfast::cpu::MPFAST_ISA

namespace mpfast::cpu {

template <>
void look_around<isa::MPFAST_ISA>(const Tridiagonal& matrix, Around& around, index_t shifts) {
  constexpr index_t kStep = MPFAST_ISA::kChains * MPFAST_ISA::kAtATime;
  static_assert(kShifts % kStep == 0);
  for (index_t start = 0; start < shifts; start += kStep) MPFAST_ISA::look(matrix, around, start);
}

}  // namespace mpfast::cpu
