// What kernels and their launches ask of the machine. nvcc gives it a device; the tests give it an emulation of one on
// the host (tests/emulation), compiled from the same kernel sources by the host's compiler.
//
// Both offer, besides CUDA's own threadIdx, blockIdx, blockDim, gridDim, __syncthreads and __shfl_xor_sync:
//   shared_memory<T>()          the block's dynamic shared memory, its only one
//   cluster_sync(size)          a barrier of the `size` blocks of a cluster; of the block itself when size is 1
//   pair_sync()                 a barrier of two neighbouring warps, of which the first has an even number
//   Arrivals                    8 bytes of shared memory that know when what other blocks of the cluster send is here
//     start_arrivals(a)                    before the first cluster_sync, by one thread
//     expect_arrivals(a, bytes, size)      by one thread, once for each phase: as much will be sent
//     send(to, value, a, rank, size)       puts a value where `to` is in block `rank`, and counts it there in what `a`
//     is wait_for_arrivals(a, phase, size)    until all of this phase is here; phases are numbered from 0. For the last
//                                          one or the one before it. A barrier of the block when size is 1
//   copy_async<bytes>(to, from), copy_word_async(to, from)    copies from global to shared memory
//   commit_copies()             ends a group of them
//   wait_for_copies<n>()        until all but the last n groups of this thread are there
//   wait_for_copies()           until all copies of this thread are there
//   prefetch_to_l2(address)
//   bfloat16_pair(low, high)    two numbers, rounded, in one word
//   load_matrices<transposed>(words, line)    the lanes of a warp read four 8 x 8 matrices of 16-bit entries; lane i
//                               names the 16 bytes of line i % 8 of matrix i / 8, and receives two neighbours of its
//                               row lane / 4 of each matrix, or of its transpose
//   add_matrix_product(sum, a, b)             sum (16 x 8) += a (16 x 16) b (16 x 8), bfloat16 entries spread over the
//                               lanes of a warp as the tensor cores have them, sums in single precision
//   places(stream, grid, kernel)              clusters of this launch that the device has room for at a time
//   launch(stream, grid, kernel, arguments...)
#pragma once

#ifdef __CUDACC__
#include "cuda/machine/device_platform.hpp"
#else
#include "emulation/platform.hpp"
#endif
