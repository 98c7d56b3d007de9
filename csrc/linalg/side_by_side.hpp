// Block Lanczos runs side by side: each has a Krylov space of its own, and one pass over W multiplies for all of them.
//
// A run of b probes costs b^2 p k^2 flops to orthogonalise and b^3 k^3 for its Ritz values, after k steps: several
// narrow runs take less than a wide one, and say as much about the distribution of the eigenvalues.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <vector>

#include "linalg/block_lanczos.hpp"

namespace mpfast::linalg {

template <Backend B>
class SideBySide {
 public:
  // `width` probes in `parts` runs of nearly equal widths, with streams of probes from that of `key` on.
  SideBySide(B& backend, index_t width, index_t parts, ProbeKey key) : backend_(&backend), width_(width) {
    if (parts < 1 || parts > width) throw std::invalid_argument("a run has 1 to `width` parts");
    for (index_t i = 0; i < parts; ++i) {
      parts_.emplace_back(backend, width / parts + (i < width % parts ? 1 : 0),
                          ProbeKey{key.seed, key.stream + static_cast<std::uint32_t>(i)});
    }
  }

  index_t width() const { return width_; }
  index_t parts() const { return static_cast<index_t>(parts_.size()); }
  BlockLanczos<B>& part(index_t i) { return parts_.at(static_cast<std::size_t>(i)); }
  const BlockLanczos<B>& part(index_t i) const { return parts_.at(static_cast<std::size_t>(i)); }

  // Steps that all parts have taken, but for those that were exhausted before.
  index_t steps() const {
    index_t most = 0;
    index_t least = std::numeric_limits<index_t>::max();
    for (const auto& part : parts_) {
      most = std::max(most, part.steps());
      if (!part.exhausted()) least = std::min(least, part.steps());
    }
    return std::min(most, least);
  }

  bool exhausted() const { return std::ranges::all_of(parts_, &BlockLanczos<B>::exhausted); }

  index_t max_steps() const { return backend_->dim() / (width_ / parts()); }

  // Takes up to `count` further steps in every part that is not exhausted.
  void advance(index_t count) {
    if (parts_.size() == 1) return parts_.front().advance(count);
    const index_t target = steps() + std::min(count, max_steps());
    for (auto& part : parts_) part.prepare(target);
    while (true) {
      std::vector<BlockLanczos<B>*> stepping;
      for (auto& part : parts_) {
        if (part.can_step(target)) stepping.push_back(&part);
      }
      if (stepping.empty()) return;
      multiply(stepping);
      for (auto* part : stepping) part->step();
    }
  }

 private:
  using View = typename B::View;

  // One pass for all that need a product.
  void multiply(const std::vector<BlockLanczos<B>*>& stepping) {
    std::vector<BlockLanczos<B>*> waiting;
    index_t count = 0;
    bool first = false;
    for (auto* part : stepping) {
      if (part->has_product()) continue;
      waiting.push_back(part);
      count += part->width();
      first = first || part->steps() == 0;
    }
    if (waiting.empty()) return;
    if (!together_) together_ = backend_->allocate(2 * width_);
    const View x = together_->slice(0, count);
    const View z = together_->slice(width_, count);
    index_t at = 0;
    for (auto* part : waiting) {
      backend_->copy(part->operand(), x.slice(at, part->width()));
      at += part->width();
    }
    OperatorStats stats;
    backend_->apply(x, z, first ? &stats : nullptr);
    at = 0;
    for (auto* part : waiting) {
      backend_->copy(z.slice(at, part->width()), part->product());
      at += part->width();
      part->take_product(stats);
    }
  }

  B* backend_;
  index_t width_;
  std::vector<BlockLanczos<B>> parts_;
  std::optional<typename B::Vectors> together_;  // operands and products of a pass
};

}  // namespace mpfast::linalg
