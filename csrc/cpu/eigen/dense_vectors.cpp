#include "cpu/eigen/dense_vectors.hpp"

#include <algorithm>
#include <functional>
#include <memory>
#include <utility>

#include "core/abandonable.hpp"
#include "core/buffer.hpp"
#include "core/small_matrix.hpp"
#include "cpu/eigen/bidiagonal.hpp"
#include "cpu/eigen/householder_qr.hpp"
#include "cpu/products/host_backend.hpp"
#include "linalg/lapack.hpp"

namespace mpfast::cpu {

namespace {

// From this order on a call of LAPACK takes some 20 ms or more. It then runs on a thread of its own.
constexpr index_t kLong = 400;
// Vectors that one task works on. Each task forms the triangular factors of the reflectors anew: an eighth of its work.
constexpr index_t kVectors = 128;

constexpr auto kDouble = static_cast<index_t>(sizeof(double));

void in_lapack(Team& team, index_t order, std::function<void()> call) {
  if (order < kLong) {
    call();
  } else {
    run_abandonable([&team] { team.check_interrupt(); }, std::move(call));
  }
}

// body(first, count) for every group of vectors.
template <class Body>
void over_vectors(Team& team, index_t count, const Body& body) {
  team.parallel_for(ceil_div(count, kVectors), [&](index_t group, int) {
    const index_t first = group * kVectors;
    body(first, std::min(kVectors, count - first));
  });
}

}  // namespace

std::vector<double> symmetric_eigenvectors(Team& team, index_t n, const double* a, double* z) {
  struct State {
    explicit State(index_t n)
        : matrix(n, n, "a copy of the matrix"),
          vectors(n, n, "eigenvectors"),
          d(static_cast<std::size_t>(n)),
          e(static_cast<std::size_t>(n)),
          tau(static_cast<std::size_t>(n)) {}
    Buffer<double> matrix, vectors;
    std::vector<double> d, e, tau;
  };
  if (n == 0) return {};
  const auto state = std::make_shared<State>(n);
  std::copy_n(a, n * n, state->matrix.get());
  in_lapack(team, n, [state, n] {
    auto& s = *state;
    linalg::tridiagonalize(n, s.matrix.get(), n, s.d.data(), s.e.data(), s.tau.data());
  });
  in_lapack(team, n, [state, n] {
    auto& s = *state;
    linalg::tridiagonal_eigenvectors(n, s.d.data(), s.e.data(), s.vectors.get(), n);
  });
  over_vectors(team, n, [&](index_t first, index_t count) {
    double* mine = z + first * n;
    std::copy_n(state->vectors.get() + first * n, count * n, mine);
    linalg::apply_tridiagonal_q(n, count, state->matrix.get(), n, state->tau.data(), mine, n);
  });
  return std::move(state->d);
}

std::vector<double> largest_eigenvectors(Team& team, index_t n, index_t count, const double* a, double* z) {
  struct State {
    State(index_t n, index_t count)
        : matrix(n, n, "a copy of the matrix"),
          vectors(n, count, "eigenvectors"),
          d(static_cast<std::size_t>(n)),
          e(static_cast<std::size_t>(n)),
          tau(static_cast<std::size_t>(n)),
          values(static_cast<std::size_t>(n)) {}
    Buffer<double> matrix, vectors;
    std::vector<double> d, e, tau, values;
  };
  if (count == 0) return {};
  const auto state = std::make_shared<State>(n, count);
  std::copy_n(a, n * n, state->matrix.get());
  in_lapack(team, n, [state, n, count] {
    auto& s = *state;
    linalg::tridiagonalize(n, s.matrix.get(), n, s.d.data(), s.e.data(), s.tau.data());
    linalg::largest_tridiagonal_eigenvectors(n, count, s.d.data(), s.e.data(), s.values.data(), s.vectors.get(), n);
  });
  over_vectors(team, count, [&](index_t first, index_t number) {
    double* mine = z + first * n;
    std::copy_n(state->vectors.get() + first * n, number * n, mine);
    linalg::apply_tridiagonal_q(n, number, state->matrix.get(), n, state->tau.data(), mine, n);
  });
  state->values.resize(static_cast<std::size_t>(count));
  return std::move(state->values);
}

index_t eigenvector_bytes(index_t n) { return 3 * n * n * kDouble; }

std::vector<double> decompose_to_singular(Team& team, Rows basis, Rows image, Rows right, Rows left) {
  const index_t k = image.count;
  const index_t q = image.length;
  if (k == 0) return {};
  // Image^T = Q R, R = (Q_B U) S (P V)^T by way of a bidiagonal matrix.
  const HouseholderQr qr(team, q, k, image.data, q);
  const index_t ld = padded_leading_dimension(k);
  Buffer<double> r(ld, k, "a triangular matrix");
  for (index_t j = 0; j < k; ++j) {
    double* end = std::copy_n(image.data + j * q, j + 1, r.get() + j * ld);
    std::fill_n(end, k - j - 1, 0.0);
  }
  struct State : Bidiagonalization {
    State(index_t k, Buffer<double> r, index_t ld)
        : Bidiagonalization(k, k, std::move(r), ld), u(k, k, "singular vectors"), vt(k, k, "singular vectors") {}
    Buffer<double> u, vt;
  };
  const auto state = std::make_shared<State>(k, std::move(r), ld);
  bidiagonalize(team, k, k, state);
  in_lapack(team, k, [state, k] {
    auto& s = *state;
    linalg::bidiagonal_singular_vectors(k, s.d.data(), s.e.data(), s.u.get(), s.vt.get());
  });
  SmallMatrix coefficients(k, k);
  using linalg::BidiagonalFactor;
  over_vectors(team, k, [&](index_t first, index_t count) {
    const State& s = *state;
    for (index_t i = first; i < first + count; ++i) {
      for (index_t j = 0; j < k; ++j) coefficients.data()[i * k + j] = s.vt.get()[j * k + i];
      double* end = std::copy_n(s.u.get() + i * k, k, left.data + i * q);
      std::fill_n(end, q - k, 0.0);
    }
    linalg::apply_bidiagonal(BidiagonalFactor::p, k, count, s.a.get(), ld, s.taup.data(),
                             coefficients.data() + first * k, k);
    linalg::apply_bidiagonal(BidiagonalFactor::q, k, count, s.a.get(), ld, s.tauq.data(), left.data + first * q, q);
  });
  qr.apply(team, k, left.data, q);
  using View = HostBackend<double>::View;
  HostBackend<double>(team, basis.length, {})
      .combine(View{basis.data, basis.length, k}, coefficients, View{right.data, right.length, k});
  return std::move(state->d);
}

index_t decomposition_bytes(index_t count) { return 8 * count * count * kDouble; }

void orthonormal_rows(Team& team, Rows x, Rows q, Rows r) {
  const HouseholderQr qr(team, x.length, x.count, x.data, x.length);
  for (index_t i = 0; i < r.count; ++i) {
    for (index_t j = 0; j < r.length; ++j) r.data[i * r.length + j] = i <= j ? x.data[j * x.length + i] : 0.0;
  }
  for (index_t i = 0; i < q.count; ++i) {
    std::fill_n(q.data + i * q.length, q.length, 0.0);
    q.data[i * q.length + i] = 1.0;
  }
  qr.apply(team, q.count, q.data, q.length);
}

}  // namespace mpfast::cpu
