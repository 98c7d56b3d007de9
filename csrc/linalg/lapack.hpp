// The BLAS and LAPACK routines that are called, always on one thread: parallelism comes from the caller, so that the
// order of every sum is ours and results do not depend on the number of threads. All matrices are column-major.
#pragma once

#include <span>
#include <string>

#include "core/types.hpp"

namespace mpfast::linalg {

// Pins OpenBLAS (our own copy, not NumPy's) to one thread, and keeps it whole across fork(). Called once, when the
// extension module is loaded.
//
// OpenBLAS looks for work space under a lock of its own. A child that is forked while another thread holds it would
// wait for ever in its first call of BLAS. So a fork waits until no thread is in BLAS, for a second at most:
// eigenvectors of thousands of rows take longer, and most of that time the lock is free.
void set_up_blas();

// Makes sure that calls of BLAS from several threads at once find their work space, for as long as it lives.
//
// OpenBLAS maps 32 MB for every call that runs beside others, keeps them for later calls, and ends the process when it
// gets none. So whoever is about to call it asks first whether there is that much.
class BlasMemory {
 public:
  // For up to `threads` threads that are yet to be started, fewer when memory is short; `bytes` is what the caller
  // allocates besides. Throws AllocationError when there is not enough for one thread.
  BlasMemory(int threads, index_t bytes);
  ~BlasMemory();
  BlasMemory(const BlasMemory&) = delete;
  BlasMemory& operator=(const BlasMemory&) = delete;

  int threads() const { return threads_; }

 private:
  int threads_;
  int generation_;
};

// "OpenBLAS 0.3.x ... Haswell ..."
std::string blas_description();

// C = alpha op(A) op(B) + beta C, with op(A) m x k and op(B) k x n.
void gemm(bool transpose_a, bool transpose_b, index_t m, index_t n, index_t k, double alpha, const double* a,
          index_t lda, const double* b, index_t ldb, double beta, double* c, index_t ldc);
void gemm(bool transpose_a, bool transpose_b, index_t m, index_t n, index_t k, float alpha, const float* a, index_t lda,
          const float* b, index_t ldb, float beta, float* c, index_t ldc);

// Lower triangle of C = alpha A^T A + beta C (A is k x n).
void syrk_lower_transposed(index_t n, index_t k, double alpha, const double* a, index_t lda, double beta, double* c,
                           index_t ldc);

// Lower triangle of C = alpha A A^T + beta C (A is n x k).
void syrk_lower(index_t n, index_t k, double alpha, const double* a, index_t lda, double beta, double* c, index_t ldc);

// Lower triangle of C = alpha A A^T + beta C (A is n x k).
void syrk_lower(index_t n, index_t k, float alpha, const float* a, index_t lda, float beta, float* c, index_t ldc);

// A = L L^T in place from the lower triangle of A; what lies above the diagonal is left alone (LAPACK potrf). Returns
// the number of columns that were finished before a pivot was not positive: n on success.
index_t cholesky_lower(index_t n, double* a, index_t lda);
index_t cholesky_lower(index_t n, float* a, index_t lda);

// B = B L^-T for the lower triangular L (n x n); B is m x n.
void divide_by_lower_transposed(index_t m, index_t n, const double* l, index_t ldl, double* b, index_t ldb);

// B = L^-1 B for the lower triangular L (m x m); B is m x n.
void solve_lower(index_t m, index_t n, const double* l, index_t ldl, double* b, index_t ldb);

// x = (L L^T)^-1 x for the lower triangular L (n x n).
void solve_cholesky(index_t n, const float* l, index_t ldl, float* x);

// x = A^-1 x for a band matrix with `width` diagonals on each side of the main one (LAPACK gbsv): entry (i, j) lies at
// a[2 * width + i - j + j * (3 * width + 1)], and the first `width` of those places are for what pivoting fills in. A
// becomes its factors. Says whether A could be inverted.
bool solve_band(index_t n, index_t width, double* a, double* x);

// QR of A (m x n, m >= n) in place, recursive: R above, the unit lower trapezoidal V below, Q = I - V T V^T.
// T is n x n upper triangular; what lies below its diagonal is left alone.
void qr_compact_wy(index_t m, index_t n, double* a, index_t lda, double* t, index_t ldt);

// C = Q C, or Q^T C, for the Q of qr_compact_wy with k reflectors; C is m x n, workspace holds n * k.
void apply_q(bool transpose, index_t m, index_t n, index_t k, const double* v, index_t ldv, const double* t,
             index_t ldt, double* c, index_t ldc, double* workspace);

// T = Q^T A Q from the lower triangle of A, one stage (LAPACK sytrd), with Q in A below the diagonal and in tau; d has
// n entries, e and tau have n - 1.
void tridiagonalize(index_t n, double* a, index_t lda, double* d, double* e, double* tau);

// C = Q C for the Q of tridiagonalize; C is n x columns.
void apply_tridiagonal_q(index_t n, index_t columns, const double* a, index_t lda, const double* tau, double* c,
                         index_t ldc);

// Eigenvalues of the symmetric tridiagonal (d, e), ascending into d, and its eigenvectors, one per column of z, by
// divide and conquer (LAPACK stedc); e is destroyed.
void tridiagonal_eigenvectors(index_t n, double* d, double* e, double* z, index_t ldz);

// The largest `count` (1 ... n) eigenvalues of the symmetric tridiagonal (d, e), ascending into values, which has n
// entries, and their eigenvectors, one per column of z, by relatively robust representations (LAPACK stemr). d and e,
// which has n entries here, are destroyed.
void largest_tridiagonal_eigenvectors(index_t n, index_t count, double* d, double* e, double* values, double* z,
                                      index_t ldz);

// Eigenvalues of the symmetric A, ascending, from its lower triangle; A becomes its eigenvectors, one per column, by
// divide and conquer (LAPACK syevd).
void symmetric_eigenvectors(index_t n, double* a, index_t lda, double* values);

// First k steps of the upper bidiagonalisation of A (m >= n, LAPACK labrd). The trailing matrix is left to be updated
// as A -= V Y^T + X U^T, V and U being stored in A; x is m x k, y is n x k.
void bidiagonalize_panel(index_t m, index_t n, index_t k, double* a, index_t lda, double* d, double* e, double* tauq,
                         double* taup, double* x, index_t ldx, double* y, index_t ldy);

// The whole upper bidiagonalisation of A (m >= n, LAPACK gebrd): A = Q B P^T, with Q and P in A, tauq and taup.
void bidiagonalize(index_t m, index_t n, double* a, index_t lda, double* d, double* e, double* tauq, double* taup);

// C = Q C, or P C, for the Q and P of the bidiagonalisation of an n x n matrix; C is n x columns.
enum class BidiagonalFactor { q, p };
void apply_bidiagonal(BidiagonalFactor factor, index_t n, index_t columns, const double* a, index_t lda,
                      const double* tau, double* c, index_t ldc);

// Singular values of the upper bidiagonal (d, e), descending into d; e is destroyed (LAPACK bdsqr, that is dqds).
void bidiagonal_singular_values(index_t n, double* d, double* e);

// The same, with left singular vectors as columns of u and right ones as rows of vt, both n x n without gaps between
// their columns, by divide and conquer (LAPACK bdsdc).
void bidiagonal_singular_vectors(index_t n, double* d, double* e, double* u, double* vt);

}  // namespace mpfast::linalg
