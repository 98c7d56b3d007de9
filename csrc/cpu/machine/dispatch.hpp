// The instruction sets that kernels are compiled for, and the choice between them at run time.
//
// A source of kernels is compiled once for each set, with the name of that set as MPFAST_ISA (see CMakeLists.txt). The
// name stands for two things: the namespace of everything internal to the source, and one of the tags below. For that
// tag the source defines the templates that its header declares. In band_kernels, for example:
//
//   header   template <class Isa>
//            void chase_step(...);
//   source   template <>
//            void chase_step<isa::MPFAST_ISA>(...) { ... }
//   caller   const ChaseStep step = for_active_isa([]<class Isa>() { return &chase_step<Isa>; });
//
// A new set is a tag with its place in Isas here, its flags in CMakeLists.txt, and its registers in simd.hpp.
#pragma once

namespace mpfast::cpu {

namespace isa {

struct baseline {
  static constexpr const char* kName = "baseline";
  static bool runs_here() { return true; }
};

#ifdef MPFAST_X86_DISPATCH
struct avx2 {
  static constexpr const char* kName = "avx2";
  static bool runs_here() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  }
};

struct avx512 {
  static constexpr const char* kName = "avx512";
  static bool runs_here() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
};
#endif

}  // namespace isa

template <class... Isa>
struct IsaList {};

// The sets of this build, narrowest first. A CPU that runs one of them runs those before it.
#ifdef MPFAST_X86_DISPATCH
using Isas = IsaList<isa::baseline, isa::avx2, isa::avx512>;
#else
using Isas = IsaList<isa::baseline>;
#endif

// The place in Isas of the widest set that this CPU runs, decided once. The environment variable MPFAST_ISA (the name
// of a set) lowers it; it cannot raise it.
int active_isa();

// function.template operator()<Isa>() for the set at a place in the list.
template <class Function, class First, class... Wider>
auto call_with_isa(int place, IsaList<First, Wider...>, const Function& function) {
  if constexpr (sizeof...(Wider) > 0) {
    if (place > 0) return call_with_isa(place - 1, IsaList<Wider...>{}, function);
  }
  return function.template operator()<First>();
}

// function.template operator()<Isa>() for the set in use.
template <class Function>
auto for_active_isa(const Function& function) {
  return call_with_isa(active_isa(), Isas{}, function);
}

inline const char* active_isa_name() {
  return for_active_isa([]<class Isa>() { return Isa::kName; });
}

}  // namespace mpfast::cpu
