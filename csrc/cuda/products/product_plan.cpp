#include <algorithm>

#include "cuda/products/gram_layout.hpp"
#include "cuda/products/product_kernels.hpp"
#include "cuda/products/product_layout.hpp"

namespace mpfast::cuda {

namespace {

// Enough blocks of a plain product for two rounds on the largest devices.
constexpr index_t kWantedBlocks = 512;
// The least number of panels in a chunk of a Gram product. Each chunk ends in a partial result of N x b entries that is
// written and read again, which shorter chunks do not make up for.
constexpr index_t kLeastGramPanels = 4;
// Rows whose contributions are added one after the other in single precision.
constexpr index_t kMostChunkRows = 4096;
constexpr index_t kMostGridRows = 65535;

}  // namespace

ProductPlan plan_gram_product(const MatrixView& b, std::size_t real_bytes, int width, const DeviceLimits& limits) {
  // Blocks of 256 threads share a multiprocessor; those of 512 have one to themselves.
  struct Choice {
    int threads;
    int team;
  };
  constexpr Choice kTeams{512, 2};
  constexpr Choice kSmall{256, 1};
  constexpr Choice kLarge{512, 1};
  const index_t each = gram_coordinates(real_bytes);
  ProductPlan plan;
  plan.width = gram_width(width, b.dtype, real_bytes);
  plan.possible = false;
  for (const Choice& choice : {kTeams, kSmall, kLarge}) {
    if (choice.team > 1 && !rows_are_neighbours(b)) continue;
    plan.team = choice.team;
    plan.slices = ceil_div(b.cols, each * choice.threads / choice.team);
    // Slices of equal length.
    const index_t warps = ceil_div(ceil_div(b.cols, plan.slices), each * kWarp) * choice.team;
    plan.threads = static_cast<int>(std::max<index_t>(warps * kWarp, kLeastGramThreads * choice.team));
    plan.slice = plan.threads / choice.team * each;
    plan.shared_bytes = GramMemory(b.dtype, real_bytes, plan.width, plan.threads, choice.team).end;
    plan.possible = plan.slices <= limits.largest_cluster && plan.shared_bytes <= limits.shared_bytes;
    if (plan.possible) break;
  }
  plan.panel_rows = gram_rows(b.dtype) * plan.team;
  return plan;
}

void plan_chunks(ProductPlan& plan, const MatrixView& b, index_t places) {
  const index_t panels = ceil_div(b.rows, plan.panel_rows);
  const index_t rounds = ceil_div(b.rows, places * kMostChunkRows);
  plan.chunks = std::clamp<index_t>(panels / kLeastGramPanels, 1, std::min(places * rounds, kMostGridRows));
  plan.chunk_panels = ceil_div(panels, plan.chunks);
}

ProductPlan plan_plain_product(const MatrixView& b, std::size_t real_bytes, int width, const DeviceLimits& limits) {
  ProductPlan plan;
  plan.width = padded_width(width, real_bytes);
  plan.threads = kPlainThreads;
  plan.slice = index_t{plan.threads} * coordinates_per_thread(plan.width, real_bytes);
  plan.slices = ceil_div(b.cols, plan.slice);
  plan.shared_bytes = ProductMemory(b.dtype, real_bytes, plan.width, plan.threads).end;
  plan.possible = plan.shared_bytes <= limits.shared_bytes;
  plan.panel_rows = kTileWords * rows_per_word(b.dtype);
  const index_t panels = ceil_div(b.rows, plan.panel_rows);
  const index_t wanted = std::max<index_t>(kWantedBlocks / plan.slices, 1);
  plan.chunk_panels = std::max(ceil_div(panels, wanted), ceil_div(panels, kMostGridRows));
  plan.chunks = ceil_div(panels, plan.chunk_panels);
  return plan;
}

}  // namespace mpfast::cuda
