#include "cpu/machine/team.hpp"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "core/forced_unwind.hpp"
#include "cpu/machine/loop_log.hpp"

namespace mpfast::cpu {

namespace {
constexpr auto kPollInterval = std::chrono::milliseconds(50);

// Threads that are asked for by number may outnumber the processors, but starting tens of thousands takes seconds and
// helps nobody.
constexpr int kMostPerProcessor = 16;
constexpr int kLargestTeam = 256;

// What a thread does while another is called and wakes up, about 5 us.
constexpr double kFlopsOfCall = 3e5;
}  // namespace

Team::Team(int threads, Poll poll)
    : size_(std::max(threads, 1)),
      poll_(std::move(poll)),
      next_poll_(std::chrono::steady_clock::now() + kPollInterval) {}

Team::~Team() {
  if (meeting_ == nullptr) return;
  if (is_here()) {
    return_workers(std::move(meeting_->workers));
  } else {
    // In a forked child nobody can be joined, and nobody answers at the conditions: they stay as they are.
    static_cast<void>(meeting_.release());
  }
}

void Team::parallel_for(index_t count, const std::function<void(index_t, int)>& task, double flops) {
  const LoopNote note(count);
  task_ = &task;
  count_ = count;
  next_.store(0);
  failure_ = nullptr;
  helpers_ = helpers_for(count, flops);
  call_two(0);
  run_tasks(0);
  wait_for_workers();
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

int Team::helpers_for(index_t count, double flops) {
  const double busy = std::min(flops / kFlopsOfCall, static_cast<double>(size_ - 1));
  const int wanted = static_cast<int>(std::min(static_cast<double>(count - 1), busy));
  if (wanted < 1 || !is_here()) return 0;
  if (meeting_ == nullptr) meeting_ = std::make_unique<Meeting>();
  Workers& workers = meeting_->workers;
  const auto here = [&] { return static_cast<int>(workers.size()); };
  if (here() < wanted) borrow_workers(wanted - here(), workers);
  return std::min(wanted, here());
}

// Everybody calls two more, so that of many threads the last is called after a few wake-ups and not after all.
void Team::call_two(int worker) {
  for (int helper = 2 * worker + 1; helper <= std::min(2 * worker + 2, helpers_); ++helper) {
    if (next_ >= count_) return;
    ++meeting_->running;
    meeting_->workers[static_cast<std::size_t>(helper - 1)]->call([this, helper] { work(helper); });
  }
}

void Team::work(int worker) {
  call_two(worker);
  run_tasks(worker);
  const std::lock_guard lock(meeting_->mutex);
  if (--meeting_->running == 0) meeting_->done.notify_one();
}

void Team::wait_for_workers() {
  if (helpers_ == 0) return;
  const auto done = [this] { return meeting_->running == 0; };
  if (!is_here()) {
    if (done()) return;
    throw std::runtime_error("the process was forked in the middle of a loop, whose threads the child does not have");
  }
  for (int helper = 1; helper <= helpers_; ++helper) {
    if (meeting_->workers[static_cast<std::size_t>(helper - 1)]->recall()) --meeting_->running;
  }
  look_for(done);
  // The lock is taken even so: the last worker is done with it when it is free.
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
  std::unique_lock<std::mutex> lock;
  if (helpers_ > 0 && is_here()) lock = std::unique_lock(meeting_->mutex);
  if (!failure_) failure_ = std::current_exception();
}

int resolve_threads(int threads) {
  const int processors = Processors().count();
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
