#include "cpu/machine/loop_log.hpp"

#include <atomic>
#include <ctime>
#include <mutex>
#include <utility>

namespace mpfast::cpu {

namespace {

std::atomic<bool> keeps_log{false};
std::mutex mutex;
std::vector<Loop> log;
thread_local int depth = 0;

double processor_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

}  // namespace

void begin_loop_log() {
  const std::lock_guard lock(mutex);
  log.clear();
  keeps_log = true;
}

std::vector<Loop> end_loop_log() {
  const std::lock_guard lock(mutex);
  keeps_log = false;
  return std::exchange(log, {});
}

LoopNote::LoopNote(index_t tasks)
    : tasks_(tasks), began_(depth++ == 0 && keeps_log.load(std::memory_order_relaxed) ? processor_seconds() : -1) {}

LoopNote::~LoopNote() {
  --depth;
  if (began_ < 0) return;
  const std::lock_guard lock(mutex);
  log.push_back({tasks_, processor_seconds() - began_});
}

}  // namespace mpfast::cpu
