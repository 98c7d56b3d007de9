#include <algorithm>

#include "cuda/products/product_kernels.hpp"
#include "cuda/products/product_layout.hpp"

namespace mpfast::cuda {

namespace {

// Enough blocks for two rounds on the largest devices. More would only write more partial results.
constexpr index_t kWantedBlocks = 512;
// The least number of panels in a chunk of a Gram product. Each chunk ends in a partial result of N x b entries that is
// written and read again, which shorter chunks do not make up for.
constexpr index_t kLeastGramPanels = 4;
// Rows whose contributions are added one after the other in single precision.
constexpr index_t kMostChunkRows = 4096;
constexpr index_t kMostGridRows = 65535;

}  // namespace

ProductPlan plan_product(ProductKind kind, const Source& b, std::size_t real_bytes, int width,
                         const DeviceLimits& limits) {
  ProductPlan plan;
  plan.width = padded_width(width, real_bytes);
  const int each = coordinates_per_thread(plan.width, real_bytes);
  const DType storage = b.dtype_in_tiles();
  const auto memory_of = [&](int threads) { return ProductMemory(storage, real_bytes, plan.width, threads).end; };
  plan.threads = 256;
  const index_t room = index_t{plan.threads} * each * limits.largest_cluster;
  const int wide = most_threads(real_bytes);
  if (kind == ProductKind::gram && b.cols > room && memory_of(wide) <= limits.shared_bytes) plan.threads = wide;
  plan.slice = index_t{plan.threads} * each;
  plan.slices = ceil_div(b.cols, plan.slice);
  plan.shared_bytes = memory_of(plan.threads);
  plan.possible =
      plan.shared_bytes <= limits.shared_bytes && (kind == ProductKind::plain || plan.slices <= limits.largest_cluster);

  plan.panel_rows = kTileWords * rows_per_word(storage);
  const index_t panels = ceil_div(b.rows, plan.panel_rows);
  const index_t least = kind == ProductKind::gram ? kLeastGramPanels : 1;
  const index_t wanted = std::max<index_t>(kWantedBlocks / plan.slices, 1);
  plan.chunk_panels = std::clamp<index_t>(ceil_div(panels, wanted), least, kMostChunkRows / plan.panel_rows);
  plan.chunk_panels = std::max(plan.chunk_panels, ceil_div(panels, kMostGridRows));
  plan.chunks = ceil_div(panels, plan.chunk_panels);
  return plan;
}

}  // namespace mpfast::cuda
