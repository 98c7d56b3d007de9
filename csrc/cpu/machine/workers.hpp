// Threads that outlive calls. A team borrows them while it lives and gives them back.
//
// None starts before the first call that has work for several. At rest they sleep; signals are not for them. Before a
// fork those at rest are ended, so that the child inherits none, and at the exit of the process, too. Of those that
// work at such a moment the child has none either: whoever borrowed them must know that (core/fork.hpp).
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

namespace mpfast::cpu {

// Waking a thread that sleeps takes as long as a short loop, so who waits for another looks for a while (about 20 us)
// before it goes to sleep.
void pause_between_looks();

template <class Condition>
void look_for(const Condition& condition) {
  constexpr int kLooks = 1000;
  for (int look = 0; look < kLooks && !condition(); ++look) pause_between_looks();
}

// That a thread may run on; all of them where the system does not say.
class Processors {
 public:
  // Of the calling thread.
  Processors();

  int count() const;
  bool operator==(const Processors& other) const;

  void bind(std::thread& thread) const;

 private:
#ifdef __linux__
  cpu_set_t set_{};
#endif
  bool known_ = false;
};

// One thread, at rest or at work for one borrower at a time.
class Worker {
 public:
  // Throws std::system_error or std::bad_alloc where the system grants no thread.
  explicit Worker(const Processors& processors);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Moves to the processors that its borrower runs on, where it does not run there already.
  void follow(const Processors& processors);

  // Has `job`, which throws nothing, run. Its predecessor must have come so far that its borrower knows of its end.
  void call(std::function<void()> job);

  // Takes back a job that has not begun: whether there was one.
  bool recall();

 private:
  void work();

  Processors processors_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::function<void()> job_;
  std::atomic<bool> called_{false};  // changed under the mutex, watched without it, as `ending_` is
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

using Workers = std::vector<std::unique_ptr<Worker>>;

// Adds `count` workers to those of a borrower, or as many as the system grants.
void borrow_workers(int count, Workers& workers);

// Of workers at rest.
void return_workers(Workers workers);

// To be called once, when the module is loaded.
void end_workers_at_fork();

}  // namespace mpfast::cpu
