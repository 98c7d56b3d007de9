#include "cpu/machine/dispatch.hpp"

#include <algorithm>
#include <cstdlib>
#include <string_view>

namespace mpfast::cpu {

namespace {

template <class... Isa>
int widest_supported(IsaList<Isa...>) {
#ifdef MPFAST_X86_DISPATCH
  __builtin_cpu_init();
#endif
  int count = 0;
  static_cast<void>(((Isa::runs_here() && ++count > 0) && ...));  // stops at the first that does not run
  return count - 1;
}

// The widest that the environment allows: all, unless it names one of them.
template <class... Isa>
int wanted(IsaList<Isa...>) {
  constexpr int kAll = sizeof...(Isa);
  const char* text = std::getenv("MPFAST_ISA");
  const std::string_view names[] = {Isa::kName...};
  const auto* named = std::find(names, names + kAll, text == nullptr ? "" : text);
  return named == names + kAll ? kAll - 1 : static_cast<int>(named - names);
}

}  // namespace

int active_isa() {
  static const int place = std::min(widest_supported(Isas{}), wanted(Isas{}));
  return place;
}

}  // namespace mpfast::cpu
