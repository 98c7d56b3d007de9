// A team of threads for one call of the library.
//
// The threads outlive the call (workers.hpp), and are borrowed when a loop has tasks for them: a team that meets no
// such loop costs nothing. Several Python threads may call at once; each has a team of its own. A child that is forked
// by an operator of the caller's, in the middle of a call, goes on alone.
//
// Determinism: a parallel_for is cut into tasks by the shape of the problem, never by the number of threads. Threads
// only decide who runs a task, so a task may write to its own slice but never add to a shared sum.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>

#include "core/abandonable.hpp"
#include "core/fork.hpp"
#include "core/types.hpp"
#include "cpu/machine/workers.hpp"

namespace mpfast::cpu {

class Team {
 public:
  // A team of `threads`, or of fewer when the system grants no more. The poll is called on the thread that owns the
  // team, at most every 50 ms while it works.
  explicit Team(int threads, Poll poll = {});
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // As many as run tasks at once, at most.
  int size() const { return size_; }

  // Runs task(index, worker) for every index in [0, count), handed out in increasing order; worker is in [0, size()).
  // The caller works too, as worker 0, and waits for nobody who has not begun when no task is left. The first exception
  // (a task's, or the poll's) stops the hand-out and is rethrown here once every worker has come to rest. Not
  // reentrant. No more workers are called than `flops`, of all tasks together, keep busy for longer than a call takes.
  void parallel_for(index_t count, const std::function<void(index_t, int)>& task,
                    double flops = std::numeric_limits<double>::infinity());

  // Gives the poll a chance to cancel. For loops that the owner runs outside parallel_for.
  void check_interrupt();

 private:
  // The threads, and how their owner waits for them.
  struct Meeting {
    Workers workers;
    std::mutex mutex;
    std::condition_variable done;
    std::atomic<int> running{0};  // called and not at rest; the last to come to rest says so under the mutex
  };

  bool is_here() const { return born_ == fork_generation(); }
  int helpers_for(index_t count, double flops);
  void call_two(int worker);
  void work(int worker);
  void run_tasks(int worker);
  void wait_for_workers();
  void record_exception();

  int size_;
  Poll poll_;
  std::chrono::steady_clock::time_point next_poll_;
  std::unique_ptr<Meeting> meeting_;
  int born_ = fork_generation();

  const std::function<void(index_t, int)>* task_ = nullptr;
  index_t count_ = 0;
  int helpers_ = 0;  // that the loop may call, of the workers
  std::atomic<index_t> next_{0};
  std::exception_ptr failure_;
};

// threads <= 0 means: OMP_NUM_THREADS if it is set, but no more than the processors this process may run on, or all of
// these. A number that is asked for may be larger than that, up to 16 for each processor or 256.
int resolve_threads(int threads);

// The same, but no more than so many flops keep busy: a thread takes as long to start as for some millions.
int threads_for(int threads, double flops);

}  // namespace mpfast::cpu
