#include "cuda/decoding/device_codes.hpp"

#include <stdexcept>

namespace mpfast::cuda {

namespace {

// How a part of a matrix lies on the device.
struct Layout {
  index_t code_bytes;   // of a row
  index_t pitch;        // from a row of codes to the next, in bytes
  index_t first_block;  // of the matrix that the part begins in
  index_t blocks;       // of a row
  index_t scale_rows;   // one where all rows share their scales

  Layout(const CodedMatrix& matrix, const Piece& piece) {
    code_bytes = ceil_div(piece.cols, codes_in_a_byte(matrix.type));
    pitch = ceil_div(code_bytes, kCodeAlignment) * kCodeAlignment;
    first_block = piece.col / matrix.width;
    blocks = ceil_div(piece.col + piece.cols, matrix.width) - first_block;
    scale_rows = matrix.scale_stride == 0 ? 1 : piece.rows;
  }
};

void copy_lines(Stream stream, void* to, index_t to_pitch, const void* from, index_t from_pitch, index_t bytes,
                index_t lines) {
  if (lines == 1) return copy(stream, to, from, static_cast<std::size_t>(bytes));
  if (from_pitch < bytes) throw std::invalid_argument("expected rows of codes and of scales in order, without overlap");
  copy_rows(stream, to, static_cast<std::size_t>(to_pitch), from, static_cast<std::size_t>(from_pitch),
            static_cast<std::size_t>(bytes), static_cast<std::size_t>(lines));
}

}  // namespace

index_t DeviceCodes::bytes(const CodedMatrix& matrix, const Piece& piece) {
  const Layout layout(matrix, piece);
  return piece.rows * layout.pitch + layout.scale_rows * layout.blocks * static_cast<index_t>(sizeof(float));
}

Source DeviceCodes::sent(Stream stream, const CodedMatrix& matrix, const Piece& piece, DType type) {
  constexpr auto kScale = static_cast<index_t>(sizeof(float));
  const Layout layout(matrix, piece);
  CodedMatrix there = matrix;
  there.rows = piece.rows;
  there.cols = piece.cols;
  there.row_stride = layout.pitch;
  there.scale_stride = layout.scale_rows == 1 ? 0 : layout.blocks;
  std::uint8_t* const codes = codes_.grown_to(stream, piece.rows * layout.pitch);
  float* const scales = scales_.grown_to(stream, layout.scale_rows * layout.blocks);
  copy_lines(stream, codes, layout.pitch,
             matrix.codes + piece.row * matrix.row_stride + piece.col / codes_in_a_byte(matrix.type), matrix.row_stride,
             layout.code_bytes, piece.rows);
  copy_lines(stream, scales, layout.blocks * kScale,
             matrix.scales + piece.row * matrix.scale_stride + layout.first_block, matrix.scale_stride * kScale,
             layout.blocks * kScale, layout.scale_rows);
  there.codes = codes;
  there.scales = scales;
  return {there, type, piece.col - layout.first_block * matrix.width};
}

}  // namespace mpfast::cuda
