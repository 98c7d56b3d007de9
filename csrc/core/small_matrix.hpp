// Small matrices of doubles that carry their shape. Column-major, on the host; at most a few thousand rows.
#pragma once

#include <cassert>
#include <cstddef>
#include <span>
#include <type_traits>
#include <vector>

#include "core/types.hpp"

namespace mpfast {

// Somebody else's entries: (i, j) lies at data[i + j * stride]. T is double or const double.
template <class T>
class BasicSmallView {
 public:
  BasicSmallView(T* data, index_t rows, index_t cols, index_t stride)
      : data_(data), rows_(rows), cols_(cols), stride_(stride) {
    assert(rows >= 0 && cols >= 0 && stride >= rows);
  }
  BasicSmallView(T* data, index_t rows, index_t cols) : BasicSmallView(data, rows, cols, rows) {}
  // What may be written may be read.
  template <class Other>
    requires std::is_same_v<const Other, T>
  BasicSmallView(const BasicSmallView<Other>& other)
      : BasicSmallView(other.data(), other.rows(), other.cols(), other.stride()) {}

  index_t rows() const { return rows_; }
  index_t cols() const { return cols_; }
  index_t stride() const { return stride_; }
  index_t size() const { return rows_ * cols_; }
  T* data() const { return data_; }

  T& operator()(index_t i, index_t j) const {
    assert(0 <= i && i < rows_ && 0 <= j && j < cols_);
    return data_[i + j * stride_];
  }

  std::span<T> column(index_t j) const {
    assert(0 <= j && j < cols_);
    return {data_ + j * stride_, static_cast<std::size_t>(rows_)};
  }

  // `count` columns from number `first` on.
  BasicSmallView columns(index_t first, index_t count) const {
    assert(0 <= first && 0 <= count && first + count <= cols_);
    return {data_ + first * stride_, rows_, count, stride_};
  }

  // All entries, column after column, where no gaps lie between the columns.
  std::span<T> entries() const {
    assert(stride_ == rows_ || cols_ <= 1);
    return {data_, static_cast<std::size_t>(size())};
  }

 private:
  T* data_;
  index_t rows_;
  index_t cols_;
  index_t stride_;
};

using SmallView = BasicSmallView<double>;
using ConstSmallView = BasicSmallView<const double>;

// A matrix of its own, zero to begin with.
class SmallMatrix {
 public:
  SmallMatrix() = default;
  SmallMatrix(index_t rows, index_t cols)
      : rows_(rows), cols_(cols), entries_(static_cast<std::size_t>(rows * cols), 0.0) {}

  index_t rows() const { return rows_; }
  index_t cols() const { return cols_; }
  double* data() { return entries_.data(); }
  const double* data() const { return entries_.data(); }

  SmallView view() { return {data(), rows_, cols_}; }
  ConstSmallView view() const { return {data(), rows_, cols_}; }
  operator SmallView() { return view(); }
  operator ConstSmallView() const { return view(); }

  double& operator()(index_t i, index_t j) { return view()(i, j); }
  double operator()(index_t i, index_t j) const { return view()(i, j); }
  std::span<double> column(index_t j) { return view().column(j); }
  std::span<const double> column(index_t j) const { return view().column(j); }
  ConstSmallView columns(index_t first, index_t count) const { return view().columns(first, count); }

 private:
  index_t rows_ = 0;
  index_t cols_ = 0;
  std::vector<double> entries_;
};

}  // namespace mpfast
