#include "cpu/machine/dispatch.hpp"

#include <algorithm>
#include <cstdlib>
#include <string_view>

namespace mpfast::cpu {

namespace {

Isa widest_supported() {
#ifdef MPFAST_X86_DISPATCH
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::baseline;
#else
  return Isa::baseline;
#endif
}

Isa wanted() {
  const char* text = std::getenv("MPFAST_ISA");
  const std::string_view name = text == nullptr ? "" : text;
  return name == "baseline" ? Isa::baseline : name == "avx2" ? Isa::avx2 : Isa::avx512;
}

}  // namespace

Isa active_isa() {
  static const Isa isa = std::min(widest_supported(), wanted());
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace mpfast::cpu
