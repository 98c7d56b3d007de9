// What unwinds the stack of a thread that is ended from outside, by pthread_exit or pthread_cancel, with the C++
// library of GCC. `catch (...)` catches it too, and whoever keeps it ends the process: it must be caught first and
// thrown on.
#pragma once

#include <exception>  // any header of the library says which library it is

#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

namespace mpfast {

#ifdef __GLIBCXX__
using ForcedUnwind = abi::__forced_unwind;
#else
class ForcedUnwind {};  // nothing throws it
#endif

}  // namespace mpfast
