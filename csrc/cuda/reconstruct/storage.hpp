// The weights of a layer from how they are stored to single precision, and back.
#pragma once

#include <cstdint>

#include "core/types.hpp"
#include "cuda/machine/runtime.hpp"

namespace mpfast::cuda {

// The largest magnitude of all entries; infinity when one is not finite.
double largest_magnitude(Stream stream, const MatrixView& w);

// to (rows x cols) = w * factor, in single precision, times rows[i] where there are factors of the rows.
void load_weights(Stream stream, const MatrixView& w, double factor, const float* rows, float* to);

// to, entries of that type without gaps = values * factor / rows[i], rounded; float16 ends at its largest.
void store_weights(Stream stream, index_t rows, index_t cols, const float* values, double factor,
                   const float* row_factors, DType dtype, void* to);

void keep_all(Stream stream, std::uint8_t* keep, index_t entries);
index_t count_kept(Stream stream, const std::uint8_t* keep, index_t entries);

}  // namespace mpfast::cuda
