#include "cuda/reconstruct/refit.hpp"

#include <algorithm>

#include "cuda/products/dense_product.hpp"
#include "cuda/reconstruct/refit_kernels.hpp"

namespace mpfast::cuda {

namespace {

// Rows under way.
constexpr index_t kChunkRows = 4096;

class Refit {
 public:
  Refit(Stream stream, const RefitProblem& problem, const Poll& poll)
      : stream_(stream), problem_(problem), poll_(poll), transposed_(stream, problem.width * problem.cols) {
    const index_t most = std::min(kChunkRows, problem.rows);
    for (DeviceBuffer<float>& buffer : arrays_) buffer = DeviceBuffer<float>(stream, most * problem.cols);
    coefficients_ = DeviceBuffer<float>(stream, most * problem.width);
    small_ = DeviceBuffer<float>(stream, most * problem.width * problem.width);
    energy_ = DeviceBuffer<double>(stream, most);
    if (problem.width > 0) transpose(stream, problem.cols, problem.width, problem.basis, transposed_.get());
  }

  void run() {
    for (index_t first = 0; first < problem_.rows; first += kChunkRows) {
      take_chunk(first, std::min(kChunkRows, problem_.rows - first));
      begin();
      for (int step = 0; step < problem_.steps; ++step) {
        if (poll_) poll_();
        multiply(chunk_.direction, chunk_.image);
        advance(stream_, chunk_);
        if (step + 1 < problem_.steps) precondition(false);
      }
    }
  }

 private:
  void take_chunk(index_t first, index_t rows) {
    RefitProblem part = problem_;
    part.rows = rows;
    part.target += first * part.cols;
    part.weights += first * part.cols;
    part.keep += first * part.cols;
    chunk_ = {part,         arrays_[0].get(), arrays_[1].get(), arrays_[2].get(), coefficients_.get(),
              small_.get(), energy_.get()};
  }

  // The residual (W - V) H on the mask, and the first direction.
  void begin() {
    set_difference(stream_, chunk_);
    if (problem_.width > 0) factor_preconditioners(stream_, chunk_);
    multiply(chunk_.direction, chunk_.residual);
    mask_residual(stream_, chunk_);
    precondition(true);
  }

  // The preconditioned residual, and with it the next direction.
  void precondition(bool first) {
    const index_t rows = chunk_.problem.rows;
    const index_t cols = problem_.cols;
    const index_t width = problem_.width;
    if (width > 0) {
      dense_product(stream_, {chunk_.residual, rows, cols, cols}, {problem_.basis, cols, width, width}, Into::store,
                    {chunk_.coefficients, rows, width, width});
      solve_preconditioners(stream_, chunk_);
      dense_product(stream_, {chunk_.coefficients, rows, width, width}, {transposed_.get(), width, cols, cols},
                    Into::store, {chunk_.image, rows, cols, cols});
    }
    turn(stream_, chunk_, first);
  }

  void multiply(const float* from, float* to) {
    const index_t rows = chunk_.problem.rows;
    const index_t cols = problem_.cols;
    dense_product(stream_, {from, rows, cols, cols}, {problem_.symmetric, cols, cols, cols}, Into::store,
                  {to, rows, cols, cols});
  }

  Stream stream_;
  const RefitProblem& problem_;
  const Poll& poll_;
  DeviceBuffer<float> transposed_;  // B^T
  DeviceBuffer<float> arrays_[3];
  DeviceBuffer<float> coefficients_;
  DeviceBuffer<float> small_;
  DeviceBuffer<double> energy_;
  RefitChunk chunk_;
};

}  // namespace

void refit(Stream stream, const RefitProblem& problem, const Poll& poll) {
  Refit(stream, problem, poll).run();
  synchronize(stream);
}

void scale_rows(Stream stream, const ScaleProblem& problem) {
  const index_t rows = problem.rows;
  const index_t cols = problem.cols;
  const DeviceBuffer<float> scaled(stream, rows * cols);
  const DeviceBuffer<float> image(stream, rows * cols);
  scale_columns(stream, rows, cols, problem.weights, problem.roots, scaled.get());
  dense_product(stream, {scaled.get(), rows, cols, cols}, {problem.symmetric, cols, cols, cols}, Into::store,
                {image.get(), rows, cols, cols});
  apply_scales(stream, problem, scaled.get(), image.get());
  synchronize(stream);
}

}  // namespace mpfast::cuda
