#include "linalg/lapack.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "cblas.h"
#include "core/buffer.hpp"
#include "core/fork.hpp"

extern "C" {
void scipy_openblas_set_num_threads(int threads);
char* scipy_openblas_get_config(void);
char* scipy_openblas_get_corename(void);

// Fortran routines; the trailing std::size_t are the hidden lengths of the character arguments.
void scipy_dpotrf_(const char* uplo, const blasint* n, double* a, const blasint* lda, blasint* info, std::size_t);
void scipy_spotrf_(const char* uplo, const blasint* n, float* a, const blasint* lda, blasint* info, std::size_t);
void scipy_dgbsv_(const blasint* n, const blasint* kl, const blasint* ku, const blasint* nrhs, double* ab,
                  const blasint* ldab, blasint* ipiv, double* b, const blasint* ldb, blasint* info);
void scipy_dgeqrt3_(const blasint* m, const blasint* n, double* a, const blasint* lda, double* t, const blasint* ldt,
                    blasint* info);
void scipy_dlarfb_(const char* side, const char* trans, const char* direct, const char* storev, const blasint* m,
                   const blasint* n, const blasint* k, const double* v, const blasint* ldv, const double* t,
                   const blasint* ldt, double* c, const blasint* ldc, double* work, const blasint* ldwork, std::size_t,
                   std::size_t, std::size_t, std::size_t);
void scipy_dsytrd_(const char* uplo, const blasint* n, double* a, const blasint* lda, double* d, double* e, double* tau,
                   double* work, const blasint* lwork, blasint* info, std::size_t);
void scipy_dsyevd_(const char* job, const char* uplo, const blasint* n, double* a, const blasint* lda, double* w,
                   double* work, const blasint* lwork, blasint* iwork, const blasint* liwork, blasint* info,
                   std::size_t, std::size_t);
void scipy_dstedc_(const char* job, const blasint* n, double* d, double* e, double* z, const blasint* ldz, double* work,
                   const blasint* lwork, blasint* iwork, const blasint* liwork, blasint* info, std::size_t);
void scipy_dstemr_(const char* job, const char* range, const blasint* n, double* d, double* e, const double* lower,
                   const double* upper, const blasint* first, const blasint* last, blasint* found, double* w, double* z,
                   const blasint* ldz, const blasint* columns, blasint* support, blasint* try_rac, double* work,
                   const blasint* lwork, blasint* iwork, const blasint* liwork, blasint* info, std::size_t,
                   std::size_t);
void scipy_dormtr_(const char* side, const char* uplo, const char* trans, const blasint* m, const blasint* n,
                   const double* a, const blasint* lda, const double* tau, double* c, const blasint* ldc, double* work,
                   const blasint* lwork, blasint* info, std::size_t, std::size_t, std::size_t);
void scipy_dlabrd_(const blasint* m, const blasint* n, const blasint* nb, double* a, const blasint* lda, double* d,
                   double* e, double* tauq, double* taup, double* x, const blasint* ldx, double* y, const blasint* ldy);
void scipy_dgebrd_(const blasint* m, const blasint* n, double* a, const blasint* lda, double* d, double* e,
                   double* tauq, double* taup, double* work, const blasint* lwork, blasint* info);
void scipy_dormbr_(const char* which, const char* side, const char* trans, const blasint* m, const blasint* n,
                   const blasint* k, const double* a, const blasint* lda, const double* tau, double* c,
                   const blasint* ldc, double* work, const blasint* lwork, blasint* info, std::size_t, std::size_t,
                   std::size_t);
void scipy_dbdsdc_(const char* uplo, const char* job, const blasint* n, double* d, double* e, double* u,
                   const blasint* ldu, double* vt, const blasint* ldvt, double* q, blasint* iq, double* work,
                   blasint* iwork, blasint* info, std::size_t, std::size_t);
void scipy_dbdsqr_(const char* uplo, const blasint* n, const blasint* ncvt, const blasint* nru, const blasint* ncc,
                   double* d, double* e, double* vt, const blasint* ldvt, double* u, const blasint* ldu, double* c,
                   const blasint* ldc, double* work, blasint* info, std::size_t);
}

namespace mpfast::linalg {

namespace {

// BLAS with 32-bit integers wraps silently past 2^31 - 1. Such sizes are refused instead.
blasint narrow(index_t value) {
  if (value > std::numeric_limits<blasint>::max()) {
    throw std::length_error("a dimension exceeds what 32-bit BLAS can address");
  }
  return static_cast<blasint>(value);
}

void require_success(blasint info, const char* routine) {
  if (info != 0) {
    throw std::runtime_error(std::string("LAPACK ") + routine + " failed with info = " + std::to_string(info));
  }
}

// Workspace per column that lets the blocked LAPACK drivers use their usual block size (32) with room to spare.
constexpr index_t kLapackBlock = 64;

// Workspace of dormtr and dormbr for a block of `columns`: some rows, and the triangular factor of a block of
// reflectors.
blasint reflector_workspace(index_t columns) { return narrow((columns + kLapackBlock + 1) * kLapackBlock); }

// Memory that a call may take: what OpenBLAS maps; a new thread's stack and what the C library may set aside for its
// allocations; and what else is allocated at the same time, such as partial sums and results.
constexpr std::size_t kBlasBuffer = std::size_t{32} << 20;
constexpr std::size_t kThread = std::size_t{72} << 20;
constexpr std::size_t kReserve = std::size_t{16} << 20;

std::mutex blas_memory_mutex;
int blas_threads = 0;          // that may be in a call now; changed under the mutex, as what follows
bool blas_has_buffer = false;  // OpenBLAS keeps what it has mapped, so one call will always find its work space

// Who is in BLAS, and whether somebody waits for nobody to be.
std::atomic<int> calls_of_blas{0};
std::atomic<bool> fork_is_near{false};

// To live during a call that may take work space. A call within a call would not get in.
class CallOfBlas {
 public:
  CallOfBlas() {
    for (++calls_of_blas; fork_is_near; ++calls_of_blas) {
      --calls_of_blas;
      while (fork_is_near) std::this_thread::yield();
    }
  }
  ~CallOfBlas() { --calls_of_blas; }
  CallOfBlas(const CallOfBlas&) = delete;
  CallOfBlas& operator=(const CallOfBlas&) = delete;
};

void before_fork() {
  constexpr auto kPatience = std::chrono::seconds(1);
  blas_memory_mutex.lock();
  fork_is_near = true;
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (calls_of_blas > 0 && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

void after_fork() {
  fork_is_near = false;
  blas_memory_mutex.unlock();
}

void in_child() {
  calls_of_blas = 0;
  blas_threads = 0;
  after_fork();
}

bool can_map([[maybe_unused]] std::size_t bytes) {
#ifdef __linux__
  void* const place = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (place == MAP_FAILED) return false;
  munmap(place, bytes);
#endif
  return true;
}

// A product that is too large for OpenBLAS to do without its work space.
void take_buffer() {
  constexpr int kSize = 160;
  const std::vector<double> a(kSize * kSize, 1.0);
  std::vector<double> c(kSize * kSize);
  scipy_cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, kSize, kSize, kSize, 1.0, a.data(), kSize, a.data(),
                    kSize, 0.0, c.data(), kSize);
}

CBLAS_TRANSPOSE op(bool transpose) { return transpose ? CblasTrans : CblasNoTrans; }

}  // namespace

void set_up_blas() {
  scipy_openblas_set_num_threads(1);
  at_fork(&before_fork, &after_fork, &in_child);
}

BlasMemory::BlasMemory(int threads, index_t bytes) : threads_(threads), generation_(fork_generation()) {
  const std::lock_guard lock(blas_memory_mutex);
  for (;; threads_ /= 2) {
    const int more = blas_threads + threads_ - static_cast<int>(blas_has_buffer);
    const std::size_t needed = static_cast<std::size_t>(more) * kBlasBuffer +
                               static_cast<std::size_t>(threads_ - 1) * kThread + kReserve +
                               static_cast<std::size_t>(bytes);
    if (can_map(needed)) break;
    if (threads_ == 1)
      throw AllocationError("the work space of this call and of OpenBLAS", static_cast<double>(needed));
  }
  if (!blas_has_buffer) take_buffer();
  blas_has_buffer = true;
  blas_threads += threads_;
}

BlasMemory::~BlasMemory() {
  const std::lock_guard lock(blas_memory_mutex);
  if (generation_ == fork_generation()) blas_threads -= threads_;
}

std::string blas_description() {
  return std::string(scipy_openblas_get_config()) + " (" + scipy_openblas_get_corename() + ")";
}

void gemm(bool transpose_a, bool transpose_b, index_t m, index_t n, index_t k, double alpha, const double* a,
          index_t lda, const double* b, index_t ldb, double beta, double* c, index_t ldc) {
  const CallOfBlas call;
  scipy_cblas_dgemm(CblasColMajor, op(transpose_a), op(transpose_b), narrow(m), narrow(n), narrow(k), alpha, a,
                    narrow(lda), b, narrow(ldb), beta, c, narrow(ldc));
}

void gemm(bool transpose_a, bool transpose_b, index_t m, index_t n, index_t k, float alpha, const float* a, index_t lda,
          const float* b, index_t ldb, float beta, float* c, index_t ldc) {
  const CallOfBlas call;
  scipy_cblas_sgemm(CblasColMajor, op(transpose_a), op(transpose_b), narrow(m), narrow(n), narrow(k), alpha, a,
                    narrow(lda), b, narrow(ldb), beta, c, narrow(ldc));
}

void syrk_lower_transposed(index_t n, index_t k, double alpha, const double* a, index_t lda, double beta, double* c,
                           index_t ldc) {
  const CallOfBlas call;
  scipy_cblas_dsyrk(CblasColMajor, CblasLower, CblasTrans, narrow(n), narrow(k), alpha, a, narrow(lda), beta, c,
                    narrow(ldc));
}

void syrk_lower(index_t n, index_t k, double alpha, const double* a, index_t lda, double beta, double* c, index_t ldc) {
  const CallOfBlas call;
  scipy_cblas_dsyrk(CblasColMajor, CblasLower, CblasNoTrans, narrow(n), narrow(k), alpha, a, narrow(lda), beta, c,
                    narrow(ldc));
}

void syrk_lower(index_t n, index_t k, float alpha, const float* a, index_t lda, float beta, float* c, index_t ldc) {
  const CallOfBlas call;
  scipy_cblas_ssyrk(CblasColMajor, CblasLower, CblasNoTrans, narrow(n), narrow(k), alpha, a, narrow(lda), beta, c,
                    narrow(ldc));
}

index_t cholesky_lower(index_t n, double* a, index_t lda) {
  const blasint n_ = narrow(n), lda_ = narrow(lda);
  blasint info = 0;
  const CallOfBlas call;
  scipy_dpotrf_("L", &n_, a, &lda_, &info, 1);
  return info > 0 ? info - 1 : n;
}

index_t cholesky_lower(index_t n, float* a, index_t lda) {
  const blasint n_ = narrow(n), lda_ = narrow(lda);
  blasint info = 0;
  const CallOfBlas call;
  scipy_spotrf_("L", &n_, a, &lda_, &info, 1);
  return info > 0 ? info - 1 : n;
}

void divide_by_lower_transposed(index_t m, index_t n, const double* l, index_t ldl, double* b, index_t ldb) {
  const CallOfBlas call;
  scipy_cblas_dtrsm(CblasColMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, narrow(m), narrow(n), 1.0, l,
                    narrow(ldl), b, narrow(ldb));
}

void solve_lower(index_t m, index_t n, const double* l, index_t ldl, double* b, index_t ldb) {
  const CallOfBlas call;
  scipy_cblas_dtrsm(CblasColMajor, CblasLeft, CblasLower, CblasNoTrans, CblasNonUnit, narrow(m), narrow(n), 1.0, l,
                    narrow(ldl), b, narrow(ldb));
}

void solve_cholesky(index_t n, const float* l, index_t ldl, float* x) {
  const CallOfBlas call;
  scipy_cblas_strsv(CblasColMajor, CblasLower, CblasNoTrans, CblasNonUnit, narrow(n), l, narrow(ldl), x, 1);
  scipy_cblas_strsv(CblasColMajor, CblasLower, CblasTrans, CblasNonUnit, narrow(n), l, narrow(ldl), x, 1);
}

bool solve_band(index_t n, index_t width, double* a, double* x) {
  const blasint n_ = narrow(n), width_ = narrow(width), lda = narrow(3 * width + 1), one = 1;
  std::vector<blasint> pivots(static_cast<std::size_t>(n));
  blasint info = 0;
  const CallOfBlas call;
  scipy_dgbsv_(&n_, &width_, &width_, &one, a, &lda, pivots.data(), x, &n_, &info);
  if (info < 0) require_success(info, "dgbsv");
  return info == 0;
}

void qr_compact_wy(index_t m, index_t n, double* a, index_t lda, double* t, index_t ldt) {
  const blasint m_ = narrow(m), n_ = narrow(n), lda_ = narrow(lda), ldt_ = narrow(ldt);
  blasint info = 0;
  const CallOfBlas call;
  scipy_dgeqrt3_(&m_, &n_, a, &lda_, t, &ldt_, &info);
  require_success(info, "dgeqrt3");
}

void apply_q(bool transpose, index_t m, index_t n, index_t k, const double* v, index_t ldv, const double* t,
             index_t ldt, double* c, index_t ldc, double* workspace) {
  const blasint m_ = narrow(m), n_ = narrow(n), k_ = narrow(k), ldv_ = narrow(ldv), ldt_ = narrow(ldt);
  const blasint ldc_ = narrow(ldc);
  const CallOfBlas call;
  scipy_dlarfb_("L", transpose ? "T" : "N", "F", "C", &m_, &n_, &k_, v, &ldv_, t, &ldt_, c, &ldc_, workspace, &n_, 1, 1,
                1, 1);
}

void tridiagonalize(index_t n, double* a, index_t lda, double* d, double* e, double* tau) {
  const blasint n_ = narrow(n), lda_ = narrow(lda), lwork = narrow(n * kLapackBlock);
  std::vector<double> work(static_cast<std::size_t>(lwork));
  blasint info = 0;
  const CallOfBlas call;
  scipy_dsytrd_("L", &n_, a, &lda_, d, e, tau, work.data(), &lwork, &info, 1);
  require_success(info, "dsytrd");
}

void apply_tridiagonal_q(index_t n, index_t columns, const double* a, index_t lda, const double* tau, double* c,
                         index_t ldc) {
  const blasint n_ = narrow(n), columns_ = narrow(columns), lda_ = narrow(lda), ldc_ = narrow(ldc);
  const blasint lwork = reflector_workspace(columns);
  std::vector<double> work(static_cast<std::size_t>(lwork));
  blasint info = 0;
  const CallOfBlas call;
  scipy_dormtr_("L", "L", "N", &n_, &columns_, a, &lda_, tau, c, &ldc_, work.data(), &lwork, &info, 1, 1, 1);
  require_success(info, "dormtr");
}

void tridiagonal_eigenvectors(index_t n, double* d, double* e, double* z, index_t ldz) {
  const blasint n_ = narrow(n), ldz_ = narrow(ldz), lwork = narrow(1 + 4 * n + n * n), liwork = narrow(3 + 5 * n);
  std::vector<double> work(static_cast<std::size_t>(lwork));
  std::vector<blasint> iwork(static_cast<std::size_t>(liwork));
  blasint info = 0;
  const CallOfBlas call;
  scipy_dstedc_("I", &n_, d, e, z, &ldz_, work.data(), &lwork, iwork.data(), &liwork, &info, 1);
  require_success(info, "dstedc");
}

void largest_tridiagonal_eigenvectors(index_t n, index_t count, double* d, double* e, double* values, double* z,
                                      index_t ldz) {
  const blasint n_ = narrow(n), columns = narrow(count), ldz_ = narrow(ldz), first = narrow(n - count + 1);
  const blasint lwork = narrow(18 * n), liwork = narrow(10 * n);
  std::vector<double> work(static_cast<std::size_t>(lwork));
  std::vector<blasint> iwork(static_cast<std::size_t>(liwork)), support(static_cast<std::size_t>(2 * count));
  const double unused = 0;
  blasint found = 0, try_rac = 0, info = 0;
  const CallOfBlas call;
  scipy_dstemr_("V", "I", &n_, d, e, &unused, &unused, &first, &n_, &found, values, z, &ldz_, &columns, support.data(),
                &try_rac, work.data(), &lwork, iwork.data(), &liwork, &info, 1, 1);
  require_success(info, "dstemr");
}

void symmetric_eigenvectors(index_t n, double* a, index_t lda, double* values) {
  const blasint n_ = narrow(n), lda_ = narrow(lda), lwork = narrow(1 + 6 * n + 2 * n * n), liwork = narrow(3 + 5 * n);
  std::vector<double> work(static_cast<std::size_t>(lwork));
  std::vector<blasint> iwork(static_cast<std::size_t>(liwork));
  blasint info = 0;
  const CallOfBlas call;
  scipy_dsyevd_("V", "L", &n_, a, &lda_, values, work.data(), &lwork, iwork.data(), &liwork, &info, 1, 1);
  require_success(info, "dsyevd");
}

void bidiagonalize_panel(index_t m, index_t n, index_t k, double* a, index_t lda, double* d, double* e, double* tauq,
                         double* taup, double* x, index_t ldx, double* y, index_t ldy) {
  const blasint m_ = narrow(m), n_ = narrow(n), k_ = narrow(k), lda_ = narrow(lda), ldx_ = narrow(ldx);
  const blasint ldy_ = narrow(ldy);
  const CallOfBlas call;
  scipy_dlabrd_(&m_, &n_, &k_, a, &lda_, d, e, tauq, taup, x, &ldx_, y, &ldy_);
}

void bidiagonalize(index_t m, index_t n, double* a, index_t lda, double* d, double* e, double* tauq, double* taup) {
  const blasint m_ = narrow(m), n_ = narrow(n), lda_ = narrow(lda), lwork = narrow((m + n) * kLapackBlock);
  std::vector<double> work(static_cast<std::size_t>(lwork));
  blasint info = 0;
  const CallOfBlas call;
  scipy_dgebrd_(&m_, &n_, a, &lda_, d, e, tauq, taup, work.data(), &lwork, &info);
  require_success(info, "dgebrd");
}

void apply_bidiagonal(BidiagonalFactor factor, index_t n, index_t columns, const double* a, index_t lda,
                      const double* tau, double* c, index_t ldc) {
  const blasint n_ = narrow(n), columns_ = narrow(columns), lda_ = narrow(lda), ldc_ = narrow(ldc);
  const blasint lwork = reflector_workspace(columns);
  std::vector<double> work(static_cast<std::size_t>(lwork));
  blasint info = 0;
  const CallOfBlas call;
  scipy_dormbr_(factor == BidiagonalFactor::q ? "Q" : "P", "L", "N", &n_, &columns_, &n_, a, &lda_, tau, c, &ldc_,
                work.data(), &lwork, &info, 1, 1, 1);
  require_success(info, "dormbr");
}

void bidiagonal_singular_values(index_t n, double* d, double* e) {
  const blasint n_ = narrow(n), none = 0, one = 1;
  std::vector<double> work(static_cast<std::size_t>(4 * n));
  double unused = 0;
  blasint info = 0;
  scipy_dbdsqr_("U", &n_, &none, &none, &none, d, e, &unused, &one, &unused, &one, &unused, &one, work.data(), &info,
                1);
  require_success(info, "dbdsqr");
}

void bidiagonal_singular_vectors(index_t n, double* d, double* e, double* u, double* vt) {
  const blasint n_ = narrow(n);
  std::vector<double> work(static_cast<std::size_t>(3 * n * n + 4 * n));
  std::vector<blasint> iwork(static_cast<std::size_t>(8 * n));
  double unused = 0;
  blasint unused_index = 0, info = 0;
  const CallOfBlas call;
  scipy_dbdsdc_("U", "I", &n_, d, e, u, &n_, vt, &n_, &unused, &unused_index, work.data(), iwork.data(), &info, 1, 1);
  require_success(info, "dbdsdc");
}

}  // namespace mpfast::linalg
