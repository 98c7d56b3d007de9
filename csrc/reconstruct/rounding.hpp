// The grid of a group of weights: whole numbers q in [0, 2^bits - 1] that stand for (q - zero) * scale. It reaches from
// the smallest to the largest weight and always has zero on it, so that a pruned weight stays zero. A symmetric one has
// its zero in the middle, at 2^(bits - 1), whatever the weights are: formats that store no zeros hold it.
//
// Shared by the host and the device; internal linkage as in masks/select.hpp.
#pragma once

namespace mpfast::reconstruct {

namespace {

constexpr int kMostBits = 8;

struct Grid {
  float scale = 1;
  float zero = 0;
};

// To the nearest whole number, of two the even one, for |x| < 2^22: the sum has no room for a fraction.
[[gnu::always_inline]] inline constexpr float nearest(float x) {
  constexpr float kNoFraction = 0x1.8p23F;
  return (x + kNoFraction) - kNoFraction;
}

[[gnu::always_inline]] inline constexpr Grid grid_over(float smallest, float largest, float top, bool symmetric) {
  const float low = smallest < 0 ? smallest : 0;
  const float high = largest > 0 ? largest : 0;
  const float middle = (top + 1) / 2;
  // Of a symmetric grid one step fewer lies above zero than below.
  const float down = -low / middle;
  const float up = high / (middle - 1);
  const float step = symmetric ? (down > up ? down : up) : (high - low) / top;
  // A group without weights other than zero, or none that a normal number can step through, is all zero.
  if (!(step > 0x1p-126F)) return {1, symmetric ? middle : 0};
  return {step, symmetric ? middle : nearest(-low / step)};
}

[[gnu::always_inline]] inline constexpr float rounded(float x, float scale, float zero, float top) {
  const float place = x / scale + zero;
  const float inside = place < 0 ? 0 : (place > top ? top : place);
  return (nearest(inside) - zero) * scale;
}

}  // namespace

}  // namespace mpfast::reconstruct
