#include "core/fork.hpp"

#include <atomic>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace mpfast {

namespace {

std::atomic<int> generation{0};

[[maybe_unused]] void count_fork() { ++generation; }

}  // namespace

int fork_generation() {
#if defined(__unix__) || defined(__APPLE__)
  [[maybe_unused]] static const int registered = pthread_atfork(nullptr, nullptr, &count_fork);
#endif
  return generation;
}

void at_fork([[maybe_unused]] void (*before)(), [[maybe_unused]] void (*in_parent)(),
             [[maybe_unused]] void (*in_child)()) {
#if defined(__unix__) || defined(__APPLE__)
  static_cast<void>(fork_generation());  // so that it counts from now on
  pthread_atfork(before, in_parent, in_child);
#endif
}

}  // namespace mpfast
