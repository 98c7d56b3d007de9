#include <ucontext.h>

#include <cstdlib>
#include <exception>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulation/platform.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace mpfast::cuda::emulation {

thread_local Index thread_index;
thread_local Index block_index;
thread_local Index block_size;
thread_local Index grid_size;

namespace {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStackBytes = std::size_t{128} << 10;

enum class State { ready, waiting, done };

struct Fiber {
  ucontext_t context{};
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  State state = State::ready;
  Scope waits_for = Scope::block;
  unsigned block = 0;  // rank in the cluster
  unsigned thread = 0;
  unsigned exchanges = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's

  struct Copy {
    void* to;
    const void* from;
    std::size_t bytes;
  };
  std::vector<Copy> copies;
};

// The fibers of one cluster, and the scheduler that runs them. Stacks are kept from one cluster to the next.
class Cluster {
 public:
  void run(const Grid& grid, Index first_block, const std::function<void()>& body) {
    body_ = &body;
    failure_ = nullptr;
    threads_ = grid.threads;
    blocks_ = grid.cluster;
    first_block_ = first_block;
    while (fibers_.size() < std::size_t{blocks_} * threads_) fibers_.push_back(std::make_unique<Fiber>());
    shared_.clear();
    for (unsigned rank = 0; rank < blocks_; ++rank) {
      // An allocation of its own, so that AddressSanitizer knows where it ends. All ones: NaN in every type.
      void* memory = std::malloc(grid.shared_bytes == 0 ? 1 : grid.shared_bytes);
      std::memset(memory, 0xff, grid.shared_bytes);
      shared_.emplace_back(memory, &std::free);
    }
    slots_.assign(std::size_t{2} * blocks_ * threads_, 0);
    for (unsigned i = 0; i < blocks_ * threads_; ++i) prepare(*fibers_[i], i);
    schedule();
    if (failure_) std::rethrow_exception(failure_);
  }

  void wait(Scope scope) {
    Fiber& self = *current_;
    self.state = State::waiting;
    self.waits_for = scope;
    leave(self, false);
  }

  void* shared_memory(unsigned rank) { return shared_.at(rank).get(); }
  unsigned rank() const { return current_->block; }
  Fiber& current() { return *current_; }
  unsigned next_exchange() { return current_->exchanges++ % 2; }
  void* exchange_slot(unsigned generation, unsigned lane) {
    return &slots_[(generation * blocks_ + current_->block) * threads_ + current_->thread / kWarp * kWarp + lane];
  }

 private:
  static thread_local Cluster* entering_;
  friend void run(const Grid&, const std::function<void()>&);

  void prepare(Fiber& fiber, unsigned number) {
    fiber.state = State::ready;
    fiber.block = number / threads_;
    fiber.thread = number % threads_;
    fiber.exchanges = 0;
    fiber.fake_stack = nullptr;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Cluster::enter, 0);
  }

  static void enter() {
    Cluster& self = *entering_;
    self.arrived(nullptr);
    try {
      (*self.body_)();
    } catch (...) {
      if (!self.failure_) self.failure_ = std::current_exception();
    }
    self.current_->state = State::done;
    self.leave(*self.current_, true);
  }

  // Runs every fiber that can run, until all are done. The order changes with every round.
  void schedule() {
    const unsigned count = blocks_ * threads_;
    for (unsigned round = 0;; ++round) {
      bool ran = false;
      for (unsigned i = 0; i < count; ++i) {
        Fiber& fiber = *fibers_[round % 2 == 0 ? i : count - 1 - i];
        if (fiber.state != State::ready) continue;
        resume(fiber);
        ran = true;
      }
      const bool released = release(Scope::warp) | release(Scope::block) | release(Scope::cluster);
      if (!ran && !released) break;
    }
    for (unsigned i = 0; i < count; ++i) {
      if (fibers_[i]->state != State::done && !failure_) {
        failure_ = std::make_exception_ptr(
            std::logic_error("a barrier was not reached by every thread: thread " + std::to_string(fibers_[i]->thread) +
                             " of block " + std::to_string(first_block_.x + fibers_[i]->block) + " waits for ever"));
      }
    }
  }

  // Opens the barriers of one kind that all their threads have reached; threads that are done do not count.
  bool release(Scope scope) {
    const unsigned group = scope == Scope::warp ? kWarp : scope == Scope::block ? threads_ : threads_ * blocks_;
    bool any = false;
    for (unsigned first = 0; first < blocks_ * threads_; first += group) {
      bool complete = true;
      bool waiting = false;
      for (unsigned i = first; i < first + group && complete; ++i) {
        const Fiber& fiber = *fibers_[i];
        const bool here = fiber.state == State::waiting && fiber.waits_for == scope;
        waiting |= here;
        // CUDA leaves a barrier that some threads skip by returning undefined: here it is an error.
        complete = here;
      }
      if (!complete || !waiting) continue;
      for (unsigned i = first; i < first + group; ++i) fibers_[i]->state = State::ready;
      any = true;
    }
    return any;
  }

  void resume(Fiber& fiber) {
    current_ = &fiber;
    entering_ = this;
    thread_index = {fiber.thread, 0};
    block_index = {first_block_.x + fiber.block, first_block_.y};
#if defined(__SANITIZE_ADDRESS__)
    void* own = nullptr;
    __sanitizer_start_switch_fiber(&own, fiber.stack.get(), kStackBytes);
    swapcontext(&scheduler_, &fiber.context);
    __sanitizer_finish_switch_fiber(own, nullptr, nullptr);
#else
    swapcontext(&scheduler_, &fiber.context);
#endif
  }

  void leave(Fiber& fiber, [[maybe_unused]] bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, scheduler_stack_, scheduler_stack_bytes_);
#endif
    swapcontext(&fiber.context, &scheduler_);
    arrived(fiber.fake_stack);
  }

  void arrived([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }

  const std::function<void()>* body_ = nullptr;
  std::exception_ptr failure_;
  unsigned threads_ = 0;
  unsigned blocks_ = 0;
  Index first_block_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<std::unique_ptr<void, void (*)(void*)>> shared_;
  std::vector<std::uint64_t> slots_;
  Fiber* current_ = nullptr;
  ucontext_t scheduler_{};
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_stack_bytes_ = 0;
};

thread_local Cluster* Cluster::entering_ = nullptr;
thread_local Cluster* running = nullptr;

}  // namespace

void wait(Scope scope) { running->wait(scope); }
void* shared_memory(unsigned rank) { return running->shared_memory(rank); }
unsigned rank_in_cluster() { return running->rank(); }
unsigned next_exchange() { return running->next_exchange(); }
void* exchange_slot(unsigned generation, unsigned lane) { return running->exchange_slot(generation, lane); }

void copy_later(void* to, const void* from, std::size_t bytes) {
  running->current().copies.push_back({to, from, bytes});
}

void finish_copies() {
  auto& copies = running->current().copies;
  for (const auto& copy : copies) std::memcpy(copy.to, copy.from, copy.bytes);
  copies.clear();
}

unsigned room_for_clusters() {
  // Tests choose a device that has clusters, but no room for large ones.
  const char* const room = std::getenv("MPFAST_EMULATED_ROOM");
  return room == nullptr ? 8 : static_cast<unsigned>(std::atoi(room));
}

void run(const Grid& grid, const std::function<void()>& body) {
  if (grid.cluster > room_for_clusters() || grid.threads == 0 || grid.threads % kWarp != 0 || grid.threads > 1024 ||
      grid.x == 0 || grid.y == 0 || grid.y > 65535 || grid.cluster == 0 || grid.x % grid.cluster != 0 ||
      grid.cluster > 8) {
    throw std::invalid_argument("a device would refuse this launch");
  }
  static thread_local Cluster cluster;
  running = &cluster;
  block_size = {grid.threads, 1};
  grid_size = {grid.x, grid.y};
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; x += grid.cluster) cluster.run(grid, {x, y}, body);
  }
}

}  // namespace mpfast::cuda::emulation
