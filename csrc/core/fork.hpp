// What fork() leaves behind: of all threads the child has only the one that forked, and whatever the others held then
// stays as it was.
#pragma once

namespace mpfast {

// How many forks lie between the process that loaded the core and this one. Threads that were started under another
// number are gone.
int fork_generation();

// Called in the thread that forks: `before`, and then `in_parent` or `in_child`. To be registered once, when the module
// is loaded. `before` should not take long: the fork waits for it.
void at_fork(void (*before)(), void (*in_parent)(), void (*in_child)());

}  // namespace mpfast
