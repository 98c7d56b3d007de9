// What kernels and their launches ask of the machine. nvcc gives it a device; the tests give it an emulation of one on
// the host (tests/emulation), compiled from the same kernel sources by the host's compiler.
//
// Both offer, besides CUDA's own threadIdx, blockIdx, blockDim, gridDim, __syncthreads and __shfl_xor_sync:
//   shared_memory<T>()          the block's dynamic shared memory, its only one
//   cluster_sync(size)          a barrier of the `size` blocks of a cluster; of the block itself when size is 1
//   shared_memory_of(p, rank)   what p, in this block's shared memory, is in that of block `rank` of the cluster
//   copy_word_async(to, from)   a copy from global to shared memory that is done after wait_for_copies()
//   prefetch_to_l2(address)
//   cluster_fits(stream, grid, kernel)   whether the device has room for one cluster of this launch
//   launch(stream, grid, kernel, arguments...)
#pragma once

#ifdef __CUDACC__
#include "cuda/machine/device_platform.hpp"
#else
#include "emulation/platform.hpp"
#endif
