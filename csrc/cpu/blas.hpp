// The BLAS and LAPACK routines the CPU side calls, always on one thread: parallelism comes from Team, so that the order
// of every sum is ours and results do not depend on the number of threads. All matrices are column-major.
#pragma once

#include <span>
#include <string>

#include "core/types.hpp"

namespace mpfast::cpu {

// Pins OpenBLAS (our own copy, not NumPy's) to one thread. Called once, when the extension module is loaded.
void blas_use_one_thread();

// "OpenBLAS 0.3.x ... Haswell ..."
std::string blas_description();

// C = alpha op(A) op(B) + beta C, with op(A) m x k and op(B) k x n.
void gemm(bool transpose_a, bool transpose_b, index_t m, index_t n, index_t k, double alpha, const double* a, index_t lda,
          const double* b, index_t ldb, double beta, double* c, index_t ldc);
void gemm(bool transpose_a, bool transpose_b, index_t m, index_t n, index_t k, float alpha, const float* a, index_t lda,
          const float* b, index_t ldb, float beta, float* c, index_t ldc);

// Lower triangle of C = alpha A^T A + beta C (A is k x n).
void syrk_lower_transposed(index_t n, index_t k, double alpha, const double* a, index_t lda, double beta, double* c,
                           index_t ldc);

}  // namespace mpfast::cpu
