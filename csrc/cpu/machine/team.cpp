#include "cpu/machine/team.hpp"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <system_error>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

#include "core/forced_unwind.hpp"

namespace mpfast::cpu {

namespace {
constexpr auto kPollInterval = std::chrono::milliseconds(50);

// Waking a sleeping thread takes as long as a short loop, so a thread looks for work for a while (about 20 us) before
// it goes to sleep.
constexpr int kLooks = 1000;

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#else
  std::this_thread::yield();
#endif
}

// That this process may run on.
int usable_processors() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(CPU_COUNT(&set), 1);
#endif
  return static_cast<int>(std::max(std::thread::hardware_concurrency(), 1U));
}

// Threads that are asked for by number may outnumber the processors, but starting tens of thousands takes seconds and
// helps nobody.
constexpr int kMostPerProcessor = 16;
constexpr int kLargestTeam = 256;

template <class Condition>
void look_for(const Condition& condition) {
  for (int look = 0; look < kLooks && !condition(); ++look) pause();
}

// Linux may queue a new thread behind its owner, where it waits for longer than a call takes while other cores are
// idle: on two idle cores, half of the products that take 4.2 ms took 8.3 ms. So a thread starts on any core but that
// of its owner, and may then move like any other.
class Elsewhere {
 public:
#ifdef __linux__
  Elsewhere() {
    const int here = sched_getcpu();
    if (here < 0 || sched_getaffinity(0, sizeof all_, &all_) != 0) return;
    others_ = all_;
    CPU_CLR(here, &others_);
    known_ = CPU_COUNT(&others_) > 0;
  }

  void send(std::thread& thread) const {
    if (known_) pthread_setaffinity_np(thread.native_handle(), sizeof others_, &others_);
  }

  // Lets the calling thread run on every core again.
  void set_free() const {
    if (known_) sched_setaffinity(0, sizeof all_, &all_);
  }

 private:
  cpu_set_t all_{};
  cpu_set_t others_{};
  bool known_ = false;
#else
  void send(std::thread&) const {}
  void set_free() const {}
#endif
};
}  // namespace

Team::Team(int threads, Poll poll)
    : poll_(std::move(poll)), next_poll_(std::chrono::steady_clock::now() + kPollInterval) {
  const int extra = std::max(threads, 1) - 1;
  if (extra == 0) return;
  meeting_->workers.reserve(static_cast<std::size_t>(extra));
  const Elsewhere elsewhere{};
  try {
    for (int worker = 1; worker <= extra; ++worker) {
      meeting_->workers.emplace_back([this, worker, elsewhere] {
        elsewhere.set_free();
        worker_loop(worker);
      });
      elsewhere.send(meeting_->workers.back());
    }
  } catch (const std::system_error&) {
    // The system grants no more threads (memory, a limit on processes). Results do not depend on how many there are.
  } catch (const std::bad_alloc&) {
    // The same for lack of the few bytes that a thread takes on the heap. The threads that have started must be joined,
    // or the process ends.
  }
}

Team::~Team() {
  if (!is_here()) {
    // In a forked child nobody can be joined, and nobody answers at the conditions: they stay as they are.
    static_cast<void>(meeting_.release());
    return;
  }
  {
    const std::lock_guard lock(meeting_->mutex);
    meeting_->stopping = true;
  }
  meeting_->start.notify_all();
  for (auto& worker : meeting_->workers) worker.join();
}

void Team::parallel_for(index_t count, const std::function<void(index_t, int)>& task) {
  task_ = &task;
  count_ = count;
  next_.store(0);
  failure_ = nullptr;
  const bool alone = meeting_->workers.empty() || count < 2 || !is_here();
  if (!alone) {
    {
      const std::lock_guard lock(meeting_->mutex);
      meeting_->running = static_cast<int>(meeting_->workers.size());
      ++meeting_->generation;
    }
    meeting_->start.notify_all();
  }
  run_tasks(0);
  if (!alone) wait_for_workers();
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Team::wait_for_workers() {
  const auto done = [this] { return meeting_->running == 0; };
  if (done()) return;
  look_for(done);
  std::unique_lock lock(meeting_->mutex);
  meeting_->done.wait(lock, done);
}

void Team::check_interrupt() {
  if (!poll_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now < next_poll_) return;
  poll_();
  next_poll_ = std::chrono::steady_clock::now() + kPollInterval;
}

void Team::worker_loop(int worker) {
  // Makes the runtime set up now what it keeps per thread about exceptions. It ends the process if that fails while one
  // is thrown, for example because memory has run out.
  static_cast<void>(std::uncaught_exceptions());
  std::uint64_t seen = 0;
  for (;;) {
    {
      const auto called = [&] { return meeting_->stopping || meeting_->generation != seen; };
      look_for(called);
      std::unique_lock lock(meeting_->mutex);
      meeting_->start.wait(lock, called);
      if (meeting_->stopping) return;
      seen = meeting_->generation;
    }
    run_tasks(worker);
    {
      const std::lock_guard lock(meeting_->mutex);
      if (--meeting_->running == 0) meeting_->done.notify_one();
    }
  }
}

void Team::run_tasks(int worker) {
  try {
    for (;;) {
      if (worker == 0) check_interrupt();
      const index_t index = next_.fetch_add(1);
      if (index >= count_) return;
      (*task_)(index, worker);
    }
  } catch (const ForcedUnwind&) {
    // The calling thread is ended: a thread of the team is not. Others may still use what its stack holds.
    next_.store(count_);
    wait_for_workers();
    throw;
  } catch (...) {
    record_exception();
  }
}

void Team::record_exception() {
  next_.store(count_);
  std::unique_lock lock(meeting_->mutex, std::defer_lock);
  if (is_here()) lock.lock();
  if (!failure_) failure_ = std::current_exception();
}

int resolve_threads(int threads) {
  const int processors = usable_processors();
  if (threads > 0) return std::min(threads, std::max(kLargestTeam, kMostPerProcessor * processors));
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    const long wanted = std::strtol(text, nullptr, 10);
    if (wanted > 0) return static_cast<int>(std::min<long>(wanted, processors));
  }
  return processors;
}

int threads_for(int threads, double flops) {
  constexpr double kFlopsOfThread = 1e7;
  return static_cast<int>(std::clamp(flops / kFlopsOfThread, 1.0, static_cast<double>(resolve_threads(threads))));
}

}  // namespace mpfast::cpu
