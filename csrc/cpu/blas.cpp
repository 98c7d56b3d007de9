#include "cpu/blas.hpp"

#include <limits>
#include <stdexcept>

#include "cblas.h"

extern "C" {
void scipy_openblas_set_num_threads(int threads);
char* scipy_openblas_get_config(void);
char* scipy_openblas_get_corename(void);
}

namespace mpfast::cpu {

namespace {

// LP64 BLAS wraps silently past 2^31 - 1: refuse instead.
blasint narrow(index_t value) {
  if (value > std::numeric_limits<blasint>::max()) {
    throw std::length_error("a dimension exceeds what 32-bit BLAS can address");
  }
  return static_cast<blasint>(value);
}

CBLAS_TRANSPOSE op(bool transpose) { return transpose ? CblasTrans : CblasNoTrans; }

}  // namespace

void blas_use_one_thread() { scipy_openblas_set_num_threads(1); }

std::string blas_description() {
  return std::string(scipy_openblas_get_config()) + " (" + scipy_openblas_get_corename() + ")";
}

void gemm(bool transpose_a, bool transpose_b, index_t m, index_t n, index_t k, double alpha, const double* a, index_t lda,
          const double* b, index_t ldb, double beta, double* c, index_t ldc) {
  scipy_cblas_dgemm(CblasColMajor, op(transpose_a), op(transpose_b), narrow(m), narrow(n), narrow(k), alpha, a,
                    narrow(lda), b, narrow(ldb), beta, c, narrow(ldc));
}

void gemm(bool transpose_a, bool transpose_b, index_t m, index_t n, index_t k, float alpha, const float* a, index_t lda,
          const float* b, index_t ldb, float beta, float* c, index_t ldc) {
  scipy_cblas_sgemm(CblasColMajor, op(transpose_a), op(transpose_b), narrow(m), narrow(n), narrow(k), alpha, a,
                    narrow(lda), b, narrow(ldb), beta, c, narrow(ldc));
}

void syrk_lower_transposed(index_t n, index_t k, double alpha, const double* a, index_t lda, double beta, double* c,
                           index_t ldc) {
  scipy_cblas_dsyrk(CblasColMajor, CblasLower, CblasTrans, narrow(n), narrow(k), alpha, a, narrow(lda), beta, c,
                    narrow(ldc));
}

}  // namespace mpfast::cpu
