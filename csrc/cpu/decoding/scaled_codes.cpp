#include "cpu/decoding/scaled_codes.hpp"

#include <algorithm>

namespace mpfast::cpu {

namespace {

template <index_t kValues>
void look_up(const std::uint8_t* codes, index_t bytes, const float* table, float* numbers) {
  for (index_t j = 0; j < bytes; ++j) {
    const float* const found = table + kValues * codes[j];
    for (index_t v = 0; v < kValues; ++v) numbers[kValues * j + v] = found[v];
  }
}

}  // namespace

void decode(const ScaledCodes& stored, float* numbers) {
  const index_t cols = stored.cols();
  const index_t blocks = stored.blocks();
  for (index_t i = 0; i < stored.rows; ++i) {
    const std::uint8_t* const codes = stored.codes + i * stored.bytes;
    const float* const scales = stored.scales + i * blocks;
    float* const row = numbers + i * cols;
    if (stored.values == 1) {
      look_up<1>(codes, stored.bytes, stored.table, row);
    } else {
      look_up<2>(codes, stored.bytes, stored.table, row);
    }
    for (index_t block = 0; block < blocks; ++block) {
      const index_t end = std::min((block + 1) * stored.width, cols);
      const float scale = scales[block];
      for (index_t j = block * stored.width; j < end; ++j) row[j] *= scale;
    }
  }
}

}  // namespace mpfast::cpu
