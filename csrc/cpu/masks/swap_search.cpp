#include "cpu/masks/swap_search.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace mpfast::cpu {

namespace {

// A set of dropped slots, its cost, and for every slot the sum of its row of A over the set.
class DroppedSet {
 public:
  DroppedSet(const double* a, int m) : a_(a), m_(m) {}

  bool has(int slot) const { return (bits_ >> slot & 1U) != 0; }
  std::uint64_t bits() const { return bits_; }
  double cost() const { return cost_; }

  double cost_of_adding(int slot) const { return at(slot, slot) + 2 * sums_[slot]; }
  double cost_of_exchange(int out, int in) const {
    return (at(out, out) - 2 * sums_[out]) + (at(in, in) + 2 * sums_[in]) - 2 * at(out, in);
  }

  void add(int slot) {
    cost_ += cost_of_adding(slot);
    bits_ |= std::uint64_t{1} << slot;
    for (int i = 0; i < m_; ++i) sums_[i] += at(slot, i);
  }

  void exchange(int out, int in) {
    cost_ += cost_of_exchange(out, in);
    bits_ ^= std::uint64_t{1} << out | std::uint64_t{1} << in;
    for (int i = 0; i < m_; ++i) sums_[i] += at(in, i) - at(out, i);
  }

 private:
  double at(int i, int j) const { return a_[i * m_ + j]; }

  const double* a_;
  int m_;
  std::uint64_t bits_ = 0;
  double cost_ = 0;
  double sums_[kLargestSwapGroup] = {};
};

DroppedSet of_least_diagonal(const double* a, int m, int d) {
  int order[kLargestSwapGroup];
  std::iota(order, order + m, 0);
  std::stable_sort(order, order + m, [&](int i, int j) { return a[i * m + i] < a[j * m + j]; });
  DroppedSet set(a, m);
  for (int k = 0; k < d; ++k) set.add(order[k]);
  return set;
}

DroppedSet greedy(const double* a, int m, int d) {
  DroppedSet set(a, m);
  for (int k = 0; k < d; ++k) {
    int best = -1;
    for (int slot = 0; slot < m; ++slot) {
      if (set.has(slot)) continue;
      if (best < 0 || set.cost_of_adding(slot) < set.cost_of_adding(best)) best = slot;
    }
    set.add(best);
  }
  return set;
}

// The least that exchanges gain is measured by the trace of A, which bounds every entry of a semidefinite A. Others,
// made by rounding or by hand, may leave no gain that counts: no descent goes on for ever.
constexpr int kMostExchanges = kLargestSwapGroup * kLargestSwapGroup;

void descend(DroppedSet& set, int m, double trace) {
  // An exchange that gains less than this gains nothing but rounding, and such exchanges could go on for ever.
  const double least_gain = 1e-13 * std::abs(trace);
  for (int exchange = 0; exchange < kMostExchanges; ++exchange) {
    double best = -least_gain;
    int best_out = -1;
    int best_in = -1;
    for (int out = 0; out < m; ++out) {
      if (!set.has(out)) continue;
      for (int in = 0; in < m; ++in) {
        if (set.has(in)) continue;
        const double change = set.cost_of_exchange(out, in);
        if (!(change < best)) continue;
        best = change;
        best_out = out;
        best_in = in;
      }
    }
    if (best_out < 0) return;
    set.exchange(best_out, best_in);
  }
}

}  // namespace

std::uint64_t cheapest_set(const double* a, int m, int d) {
  double trace = 0;
  for (int i = 0; i < m; ++i) trace += a[i * m + i];
  DroppedSet first = of_least_diagonal(a, m, d);
  DroppedSet second = greedy(a, m, d);
  descend(first, m, trace);
  if (second.bits() == first.bits()) return first.bits();
  descend(second, m, trace);
  return second.cost() < first.cost() ? second.bits() : first.bits();
}

}  // namespace mpfast::cpu
