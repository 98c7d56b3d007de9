#include "linalg/small_eigen.hpp"

#include <memory>
#include <stdexcept>
#include <utility>

#include "linalg/lapack.hpp"

extern "C" void scipy_dsyevd_(const char* job, const char* uplo, const int* n, double* a, const int* lda, double* w,
                              double* work, const int* lwork, int* iwork, const int* liwork, int* info);

namespace mpfast::linalg {

namespace {

// From this order on (some 20 ms) a call has a thread of its own, so that it can be left.
constexpr index_t kLong = 400;

// With the right to call BLAS for as long as anything needs it.
struct Problem {
  Problem(std::vector<double> matrix, std::vector<double> to, index_t bytes)
      : a(std::move(matrix)), values(std::move(to)), memory(1, bytes) {}

  std::vector<double> a, values;
  BlasMemory memory;
};

void solve(index_t n, Problem& problem) {
  const int order = static_cast<int>(n);
  const int lwork = 1 + 6 * order + 2 * order * order;
  const int liwork = 3 + 5 * order;
  std::vector<double> work(static_cast<std::size_t>(lwork));
  std::vector<int> iwork(static_cast<std::size_t>(liwork));
  int info = 0;
  scipy_dsyevd_("V", "L", &order, problem.a.data(), &order, problem.values.data(), work.data(), &lwork, iwork.data(),
                &liwork, &info);
  if (info != 0) throw std::runtime_error("the symmetric eigenproblem of a Krylov basis did not converge");
}

}  // namespace

void symmetric_eigen(index_t n, std::vector<double>& a, std::vector<double>& values, const Poll& poll) {
  if (n > 20000) throw std::length_error("symmetric_eigen(): the matrix is too large for 32-bit LAPACK");
  values.assign(static_cast<std::size_t>(n), 0.0);
  if (n == 0) return;
  const auto problem =
      std::make_shared<Problem>(std::move(a), std::move(values), 3 * n * n * static_cast<index_t>(sizeof(double)));
  const auto work = [n, problem] { solve(n, *problem); };
  if (n < kLong) {
    work();
  } else {
    run_abandonable(poll, work);
  }
  a = std::move(problem->a);
  values = std::move(problem->values);
}

}  // namespace mpfast::linalg
