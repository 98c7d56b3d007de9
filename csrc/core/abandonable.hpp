// Long calls into LAPACK that Ctrl-C can leave.
//
// OpenBLAS frees its work space when the process exits, and a call that still uses it crashes or hangs. So a process
// that exits while such a call runs, or while a daemon thread is anywhere in the core, skips what libraries do at exit
// (with glibc), or waits for the call (elsewhere).
#pragma once

#include <functional>

namespace mpfast {

// Called now and then by whoever waits for long work, on the thread that entered the core; cancels by throwing.
using Poll = std::function<void()>;

// Runs `work` on a thread of its own and keeps polling until it ends, for single calls into LAPACK that take too long.
// When the poll throws, the call goes on alone: `work` must own all it touches.
void run_abandonable(const Poll& poll, std::function<void()> work);

// Around every call into the core, on whatever thread.
void begin_call();
void end_call();

// To be called once, when the module is loaded: calls of threads that a forked child does not have do not count there.
void forget_calls_at_fork();

}  // namespace mpfast
