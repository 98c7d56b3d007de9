#include "core/abandonable.hpp"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>

#ifdef __GLIBC__
#include <unistd.h>
#endif

#include "core/fork.hpp"

namespace mpfast {

namespace {

// Never destroyed: a call may end when everything else already has.
std::atomic<int>& running_calls() {
  static auto* const count = new std::atomic<int>(0);
  return *count;
}

#ifdef __GLIBC__
void exit_during_calls(int status, void*) {
  if (running_calls() == 0) return;
  std::fflush(nullptr);
  _exit(status);
}
#else
void wait_for_calls() {
  while (running_calls() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(10));
}
#endif

struct RunningCall {
  RunningCall() { begin_call(); }
  ~RunningCall() { end_call(); }
  RunningCall(const RunningCall&) = delete;
  RunningCall& operator=(const RunningCall&) = delete;
};

}  // namespace

void begin_call() {
  [[maybe_unused]] static const int registered =
#ifdef __GLIBC__
      on_exit(&exit_during_calls, nullptr);
#else
      std::atexit(&wait_for_calls);
#endif
  ++running_calls();
}

void end_call() { --running_calls(); }

void forget_calls_at_fork() {
  begin_call();  // what is set up by the first call is set up now: a fork may come in the middle
  end_call();
  at_fork(nullptr, nullptr, [] { running_calls() = 0; });
}

void run_abandonable(const Poll& poll, std::function<void()> work) {
  const auto task = std::make_shared<std::packaged_task<void()>>(std::move(work));
  std::future<void> result = task->get_future();
  // Counted from here on: the process may exit before the thread has done anything.
  auto running = std::make_shared<RunningCall>();
  std::thread thread;
  try {
    thread = std::thread([task, running] { (*task)(); });
  } catch (const std::system_error&) {
    // The system grants no thread. The call cannot be abandoned then, but its result is right.
    (*task)();
    return result.get();
  }
  running.reset();
  try {
    while (result.wait_for(std::chrono::milliseconds(20)) != std::future_status::ready) {
      if (poll) poll();
    }
  } catch (...) {
    thread.detach();
    throw;
  }
  thread.join();
  result.get();
}

}  // namespace mpfast
