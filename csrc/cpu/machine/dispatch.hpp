// Which instruction set the kernels use on this machine.
#pragma once

namespace mpfast::cpu {

enum class Isa { baseline, avx2, avx512 };

// The widest set that this build has kernels for and this CPU runs, decided once. The environment variable MPFAST_ISA
// (baseline, avx2, avx512) lowers it; it cannot raise it.
Isa active_isa();

const char* isa_name(Isa isa);

}  // namespace mpfast::cpu
