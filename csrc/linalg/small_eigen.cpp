#include "linalg/small_eigen.hpp"

#include <cassert>
#include <memory>
#include <stdexcept>
#include <utility>

#include "linalg/lapack.hpp"

namespace mpfast::linalg {

namespace {

// From this order on a call takes some 20 ms or more. It then runs on a thread of its own, so that it can be abandoned.
constexpr index_t kLong = 400;

// Holds the right to call BLAS for as long as the call may run.
struct Problem {
  Problem(SmallMatrix matrix, index_t bytes)
      : a(std::move(matrix)), values(static_cast<std::size_t>(a.cols())), memory(1, bytes) {}

  SmallMatrix a;
  std::vector<double> values;
  BlasMemory memory;
};

// Has `work` change a, and returns the values it leaves.
template <class Work>
std::vector<double> solve(SmallMatrix& a, const Poll& poll, const Work& work) {
  const index_t n = a.cols();
  assert(a.rows() == n);
  if (n > 20000) throw std::length_error("symmetric_eigen(): the matrix is too large for 32-bit LAPACK");
  if (n == 0) return {};
  const auto problem =
      std::make_shared<Problem>(std::exchange(a, {}), 3 * n * n * static_cast<index_t>(sizeof(double)));
  if (n < kLong) {
    work(*problem);
  } else {
    run_abandonable(poll, [problem, work] { work(*problem); });
  }
  a = std::move(problem->a);
  return std::move(problem->values);
}

}  // namespace

std::vector<double> symmetric_eigen(SmallMatrix& a, const Poll& poll) {
  return solve(a, poll, [n = a.cols()](Problem& problem) {
    symmetric_eigenvectors(n, problem.a.data(), n, problem.values.data());
  });
}

std::vector<double> largest_symmetric_eigen(SmallMatrix& a, index_t count, const Poll& poll) {
  return solve(a, poll, [n = a.cols(), count](Problem& problem) {
    const auto size = static_cast<std::size_t>(n);
    std::vector<double> d(size), e(size), tau(size);
    tridiagonalize(n, problem.a.data(), n, d.data(), e.data(), tau.data());
    SmallMatrix vectors(n, count);
    largest_tridiagonal_eigenvectors(n, count, d.data(), e.data(), problem.values.data(), vectors.data(), n);
    apply_tridiagonal_q(n, count, problem.a.data(), n, tau.data(), vectors.data(), n);
    problem.values.resize(static_cast<std::size_t>(count));
    problem.a = std::move(vectors);
  });
}

}  // namespace mpfast::linalg
