// Compiled once per instruction set (see CMakeLists.txt).
#include "cpu/eigen/band_kernels.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#ifdef __FMA__
#include <immintrin.h>
#endif

#include "cpu/machine/dispatch.hpp"

namespace mpfast::cpu::MPFAST_ISA {

namespace {

// Four doubles for every instruction set: blocks are only 32 to 96 rows high, so wider registers gain nothing.
constexpr index_t kLanes = 4;
using Vec = double __attribute__((vector_size(kLanes * sizeof(double))));

inline Vec load(const double* from) {
  Vec x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline void store(double* to, Vec x) { std::memcpy(to, &x, sizeof x); }

inline Vec splat(double x) { return Vec{x, x, x, x}; }

inline double sum(Vec x) { return (x[0] + x[2]) + (x[1] + x[3]); }

inline Vec fma(Vec a, Vec b, Vec c) {
#ifdef __FMA__
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

inline double fma(double a, double b, double c) {
#ifdef __FMA__
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// The reflector that maps x to (beta, 0, ..., 0); returns beta. Matrices are scaled so that x^2 cannot overflow, and
// entries whose square underflows are far below the rounding error of the rest.
double make_reflector(const double* x, index_t n, Reflector& reflector) {
  double tail = 0;
  for (index_t i = 1; i < n; ++i) tail = fma(x[i], x[i], tail);
  const double alpha = x[0];
  reflector.v[0] = 1;
  if (tail == 0) {
    reflector.tau = 0;
    std::fill(reflector.v + 1, reflector.v + n, 0.0);
    return alpha;
  }
  const double beta = -std::copysign(std::sqrt(fma(alpha, alpha, tail)), alpha);
  const double scale = 1 / (alpha - beta);
  reflector.tau = (beta - alpha) / beta;
  for (index_t i = 1; i < n; ++i) reflector.v[i] = x[i] * scale;
  return beta;
}

// y = D v for a symmetric D given by its lower triangle; each entry is loaded once.
void symmetric_product(const double* d, index_t ld, index_t n, const double* v, double* y) {
  std::fill(y, y + n, 0.0);
  index_t c = 0;
  for (; c + 4 <= n; c += 4) {
    const double* d0 = d + c * ld;
    const double* d1 = d0 + ld;
    const double* d2 = d1 + ld;
    const double* d3 = d2 + ld;
    const Vec v0 = splat(v[c]), v1 = splat(v[c + 1]), v2 = splat(v[c + 2]), v3 = splat(v[c + 3]);
    Vec dot0{}, dot1{}, dot2{}, dot3{};
    index_t r = c + 4;
    for (; r + kLanes <= n; r += kLanes) {
      const Vec x0 = load(d0 + r), x1 = load(d1 + r), x2 = load(d2 + r), x3 = load(d3 + r);
      const Vec vr = load(v + r);
      const Vec left = fma(x1, v1, fma(x0, v0, load(y + r)));
      store(y + r, left + fma(x3, v3, x2 * v2));
      dot0 = fma(x0, vr, dot0);
      dot1 = fma(x1, vr, dot1);
      dot2 = fma(x2, vr, dot2);
      dot3 = fma(x3, vr, dot3);
    }
    double dots[4] = {sum(dot0), sum(dot1), sum(dot2), sum(dot3)};
    for (; r < n; ++r) {
      for (index_t k = 0; k < 4; ++k) {
        const double x = d[r + (c + k) * ld];
        y[r] = fma(x, v[c + k], y[r]);
        dots[k] = fma(x, v[r], dots[k]);
      }
    }
    for (index_t k = 0; k < 4; ++k) {
      const double* column = d + (c + k) * ld;
      double dot = fma(column[c + k], v[c + k], dots[k]);
      for (index_t i = c + k + 1; i < c + 4; ++i) {
        dot = fma(column[i], v[i], dot);
        y[i] = fma(column[i], v[c + k], y[i]);
      }
      y[c + k] += dot;
    }
  }
  for (; c < n; ++c) {
    const double* column = d + c * ld;
    double dot = column[c] * v[c];
    for (index_t i = c + 1; i < n; ++i) {
      dot = fma(column[i], v[i], dot);
      y[i] = fma(column[i], v[c], y[i]);
    }
    y[c] += dot;
  }
}

// D -= v w^T + w v^T on the lower triangle.
void symmetric_rank_two(double* d, index_t ld, index_t n, const double* v, const double* w) {
  for (index_t c = 0; c < n; ++c) {
    double* column = d + c * ld;
    const double vc = -v[c];
    const double wc = -w[c];
    const Vec vvc = splat(vc);
    const Vec vwc = splat(wc);
    index_t r = c;
    for (; r + kLanes <= n; r += kLanes) {
      store(column + r, fma(load(v + r), vwc, fma(load(w + r), vvc, load(column + r))));
    }
    for (; r < n; ++r) column[r] = fma(v[r], wc, fma(w[r], vc, column[r]));
  }
}

// u = E v, E rows x cols.
void product(const double* e, index_t ld, index_t rows, index_t cols, const double* v, double* u) {
  std::fill(u, u + rows, 0.0);
  index_t c = 0;
  for (; c + 4 <= cols; c += 4) {
    const double* e0 = e + c * ld;
    const double* e1 = e0 + ld;
    const double* e2 = e1 + ld;
    const double* e3 = e2 + ld;
    const Vec v0 = splat(v[c]), v1 = splat(v[c + 1]), v2 = splat(v[c + 2]), v3 = splat(v[c + 3]);
    index_t r = 0;
    for (; r + kLanes <= rows; r += kLanes) {
      const Vec left = fma(load(e1 + r), v1, fma(load(e0 + r), v0, load(u + r)));
      store(u + r, left + fma(load(e3 + r), v3, load(e2 + r) * v2));
    }
    for (; r < rows; ++r) {
      const double left = fma(e1[r], v[c + 1], fma(e0[r], v[c], u[r]));
      u[r] = left + fma(e3[r], v[c + 3], e2[r] * v[c + 2]);
    }
  }
  for (; c < cols; ++c) {
    const double* column = e + c * ld;
    for (index_t r = 0; r < rows; ++r) u[r] = fma(column[r], v[c], u[r]);
  }
}

// E = (I - tau2 v2 v2^T) (E - tau u v^T) without storing the inner bracket:
// column c becomes e - u a - v2 f with a = tau v[c] and f = tau2 (v2.e - a v2.u).
void two_sided_update(double* e, index_t ld, index_t rows, index_t cols, const double* u, const Reflector& right,
                      const Reflector& left) {
  const double* v2 = left.v;
  double v2_u = 0;
  for (index_t r = 0; r < rows; ++r) v2_u = fma(v2[r], u[r], v2_u);
  index_t c = 0;
  for (; c + 4 <= cols; c += 4) {
    double* e0 = e + c * ld;
    double* e1 = e0 + ld;
    double* e2 = e1 + ld;
    double* e3 = e2 + ld;
    Vec dot0{}, dot1{}, dot2{}, dot3{};
    index_t r = 0;
    for (; r + kLanes <= rows; r += kLanes) {
      const Vec x = load(v2 + r);
      dot0 = fma(load(e0 + r), x, dot0);
      dot1 = fma(load(e1 + r), x, dot1);
      dot2 = fma(load(e2 + r), x, dot2);
      dot3 = fma(load(e3 + r), x, dot3);
    }
    double a[4];
    double f[4] = {sum(dot0), sum(dot1), sum(dot2), sum(dot3)};
    for (; r < rows; ++r) {
      for (index_t k = 0; k < 4; ++k) f[k] = fma(e[r + (c + k) * ld], v2[r], f[k]);
    }
    for (index_t k = 0; k < 4; ++k) {
      a[k] = -right.tau * right.v[c + k];
      f[k] = -left.tau * fma(a[k], v2_u, f[k]);
    }
    const Vec a0 = splat(a[0]), a1 = splat(a[1]), a2 = splat(a[2]), a3 = splat(a[3]);
    const Vec f0 = splat(f[0]), f1 = splat(f[1]), f2 = splat(f[2]), f3 = splat(f[3]);
    for (r = 0; r + kLanes <= rows; r += kLanes) {
      const Vec x = load(v2 + r);
      const Vec y = load(u + r);
      store(e0 + r, fma(x, f0, fma(y, a0, load(e0 + r))));
      store(e1 + r, fma(x, f1, fma(y, a1, load(e1 + r))));
      store(e2 + r, fma(x, f2, fma(y, a2, load(e2 + r))));
      store(e3 + r, fma(x, f3, fma(y, a3, load(e3 + r))));
    }
    for (; r < rows; ++r) {
      for (index_t k = 0; k < 4; ++k) {
        double& entry = e[r + (c + k) * ld];
        entry = fma(v2[r], f[k], fma(u[r], a[k], entry));
      }
    }
  }
  for (; c < cols; ++c) {
    double* column = e + c * ld;
    const double a = -right.tau * right.v[c];
    double f = 0;
    for (index_t r = 0; r < rows; ++r) f = fma(column[r], v2[r], f);
    f = -left.tau * fma(a, v2_u, f);
    for (index_t r = 0; r < rows; ++r) column[r] = fma(v2[r], f, fma(u[r], a, column[r]));
  }
}

void chase(const Band& band, index_t sweep, index_t step, Reflector& reflector) {
  const index_t b = band.bandwidth;
  const index_t ld = band.stride;
  const index_t first = sweep + 1 + step * b;
  const index_t cols = std::min(b, band.n - first);
  alignas(64) double work[kMaxBandwidth];

  if (step == 0) {
    double* column = band.data + first + sweep * ld;
    const double beta = make_reflector(column, cols, reflector);
    column[0] = beta;
    std::fill(column + 1, column + cols, 0.0);
  }

  // D - v w^T - w v^T with w = tau D v - (tau^2/2 v.Dv) v is the two-sided reflection.
  double* d = band.data + first + first * ld;
  symmetric_product(d, ld, cols, reflector.v, work);
  double v_dv = 0;
  for (index_t i = 0; i < cols; ++i) v_dv = fma(reflector.v[i], work[i], v_dv);
  const double shift = -0.5 * reflector.tau * reflector.tau * v_dv;
  for (index_t i = 0; i < cols; ++i) work[i] = fma(shift, reflector.v[i], reflector.tau * work[i]);
  symmetric_rank_two(d, ld, cols, reflector.v, work);

  const index_t below = first + cols;
  const index_t rows = std::min(b, band.n - below);
  if (rows <= 0) return;
  double* e = band.data + below + first * ld;
  product(e, ld, rows, cols, reflector.v, work);
  alignas(64) double column[kMaxBandwidth];
  for (index_t r = 0; r < rows; ++r) column[r] = fma(-reflector.tau * reflector.v[0], work[r], e[r]);
  Reflector next;
  const double beta = make_reflector(column, rows, next);
  two_sided_update(e, ld, rows, cols, work, reflector, next);
  e[0] = beta;
  std::fill(e + 1, e + rows, 0.0);
  reflector.tau = next.tau;
  std::copy(next.v, next.v + rows, reflector.v);
}

}  // namespace

}  // namespace mpfast::cpu::MPFAST_ISA

namespace mpfast::cpu {

template <>
void chase_step<isa::MPFAST_ISA>(const Band& band, index_t sweep, index_t step, Reflector& reflector) {
  MPFAST_ISA::chase(band, sweep, step, reflector);
}

}  // namespace mpfast::cpu
