#include "cpu/machine/workers.hpp"

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <iterator>
#include <new>
#include <system_error>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#endif

#include "core/fork.hpp"

namespace mpfast::cpu {

namespace {

// More that come to rest at once are ended: hundreds were wanted by many calls side by side, or by one for a time.
constexpr std::size_t kMostAtRest = 256;

struct Pool {
  std::mutex mutex;
  Workers resting;
};

// Never destroyed: a call may end when everything else already has.
Pool& pool() {
  static auto* const pool = new Pool;
  return *pool;
}

void end_resting() {
  Workers ending;
  {
    const std::lock_guard lock(pool().mutex);
    ending.swap(pool().resting);
  }
}

// The lock is held across the fork, so that nobody comes to rest in between.
void before_fork() {
  pool().mutex.lock();
  pool().resting.clear();
}

void after_fork() { pool().mutex.unlock(); }

// While it lives, threads that are started leave the signals of the process to those that were there: a program that
// waits for one, with it blocked in all of its own threads, would be ended by it otherwise. Faults stay their own.
class WithoutSignals {
 public:
#if defined(__unix__) || defined(__APPLE__)
  WithoutSignals() {
    sigset_t blocked;
    sigfillset(&blocked);
    for (const int fault : {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTRAP}) sigdelset(&blocked, fault);
    pthread_sigmask(SIG_SETMASK, &blocked, &before_);
  }
  ~WithoutSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
#endif
};

}  // namespace

void pause_between_looks() {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#else
  std::this_thread::yield();
#endif
}

#ifdef __linux__
Processors::Processors() { known_ = sched_getaffinity(0, sizeof set_, &set_) == 0; }

int Processors::count() const {
  return known_ ? std::max(CPU_COUNT(&set_), 1) : static_cast<int>(std::max(std::thread::hardware_concurrency(), 1U));
}

bool Processors::operator==(const Processors& other) const {
  return known_ == other.known_ && CPU_EQUAL(&set_, &other.set_) != 0;
}

void Processors::bind(std::thread& thread) const {
  if (known_) pthread_setaffinity_np(thread.native_handle(), sizeof set_, &set_);
}

#else
Processors::Processors() = default;
int Processors::count() const { return static_cast<int>(std::max(std::thread::hardware_concurrency(), 1U)); }
bool Processors::operator==(const Processors&) const { return true; }
void Processors::bind(std::thread&) const {}
#endif

Worker::Worker(const Processors& processors) : processors_(processors) {
  const WithoutSignals without_signals;
  thread_ = std::thread([this] { work(); });
}

Worker::~Worker() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Worker::follow(const Processors& processors) {
  if (processors == processors_) return;
  processors.bind(thread_);
  processors_ = processors;
}

void Worker::call(std::function<void()> job) {
  {
    const std::lock_guard lock(mutex_);
    job_ = std::move(job);
    called_ = true;
  }
  wake_.notify_one();
}

bool Worker::recall() {
  if (!called_) return false;
  const std::lock_guard lock(mutex_);
  return called_.exchange(false);
}

void Worker::work() {
  // Makes the runtime set up now what it keeps per thread about exceptions. It ends the process if that fails while one
  // is thrown, for example because memory has run out.
  static_cast<void>(std::uncaught_exceptions());
  const auto wanted = [this] { return called_ || ending_; };
  for (;;) {
    look_for(wanted);
    std::function<void()> job;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, wanted);
      if (ending_) return;
      job = std::move(job_);
      called_ = false;
    }
    job();
  }
}

void borrow_workers(int count, Workers& workers) {
  const Processors processors;
  const std::size_t wanted = workers.size() + static_cast<std::size_t>(std::max(count, 0));
  try {
    workers.reserve(wanted);
    {
      const std::lock_guard lock(pool().mutex);
      Workers& resting = pool().resting;
      while (workers.size() < wanted && !resting.empty()) {
        workers.push_back(std::move(resting.back()));
        resting.pop_back();
        workers.back()->follow(processors);
      }
    }
    while (workers.size() < wanted) workers.push_back(std::make_unique<Worker>(processors));
  } catch (const std::system_error&) {
    // The system grants no more threads (memory, a limit on processes). Results do not depend on how many there are.
  } catch (const std::bad_alloc&) {
    // The same for lack of the few bytes that a thread takes on the heap.
  }
}

void return_workers(Workers workers) {
  [[maybe_unused]] static const int registered = std::atexit(&end_resting);
  const std::lock_guard lock(pool().mutex);
  Workers& resting = pool().resting;
  try {
    resting.reserve(resting.size() + workers.size());
  } catch (const std::bad_alloc&) {
    return;  // they end
  }
  const std::size_t kept = std::min(workers.size(), kMostAtRest - std::min(kMostAtRest, resting.size()));
  const auto first = std::make_move_iterator(workers.begin());
  resting.insert(resting.end(), first, first + static_cast<std::ptrdiff_t>(kept));
}

void end_workers_at_fork() { at_fork(&before_fork, &after_fork, &after_fork); }

}  // namespace mpfast::cpu
