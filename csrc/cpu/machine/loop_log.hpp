// What loops a call is made of: how many tasks each has, and the processor time it took. From a run on one thread
// follows what more threads could do: benchmarks/scaling.py.
#pragma once

#include <vector>

#include "core/types.hpp"

namespace mpfast::cpu {

struct Loop {
  index_t tasks;
  double seconds;
};

// Of all teams of the process, between these calls. Loops within tasks are part of them.
void begin_loop_log();
std::vector<Loop> end_loop_log();

// Notes a loop, from here to the end of its life, where a log is kept.
class LoopNote {
 public:
  explicit LoopNote(index_t tasks);
  ~LoopNote();
  LoopNote(const LoopNote&) = delete;
  LoopNote& operator=(const LoopNote&) = delete;

 private:
  index_t tasks_;
  double began_;  // negative where nothing is noted
};

}  // namespace mpfast::cpu
