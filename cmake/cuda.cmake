# The CUDA backend, a module of its own beside _core: a machine without a GPU never loads it.
#
# With nvcc it holds machine code for the data-centre GPUs of compute capability 8.0, 9.0 and 10.0 (which runs on the
# other 8.x and 10.x too; nvcc before 12.8 knows no 10.0) and PTX for what comes later. The runtime is linked statically
# and finds the driver by itself.
# With MPFAST_CUDA_EMULATION the host's compiler compiles the same sources for the emulated device of tests/emulation.
set(cuda_host_sources
  ${shared_sources}
  csrc/cuda/decoding/device_codes.cpp
  csrc/cuda/masks/masks.cpp
  csrc/cuda/masks/projection.cpp
  csrc/cuda/products/product_dispatch.cpp
  csrc/cuda/products/product_plan.cpp
  csrc/cuda/products/products.cpp
  csrc/cuda/products/streamed.cpp
  csrc/cuda/reconstruct/columns.cpp
  csrc/cuda/reconstruct/refit.cpp
  csrc/python/cuda/bind_devices.cpp
  csrc/python/cuda/bind_lanczos.cpp
  csrc/python/cuda/bind_masks.cpp
  csrc/python/cuda/bind_products.cpp
  csrc/python/cuda/bind_reconstruct.cpp
  csrc/python/cuda/module.cpp)
set(cuda_kernel_sources
  csrc/cuda/masks/mask_kernels.cu
  csrc/cuda/masks/projection_kernels.cu
  csrc/cuda/products/dense_product.cu
  csrc/cuda/products/vector_kernels.cu
  csrc/cuda/reconstruct/column_kernels.cu
  csrc/cuda/reconstruct/refit_kernels.cu
  csrc/cuda/reconstruct/storage.cu)
# The enumerators of DType (csrc/core/dtype.hpp), in their order. product_kernels.cu is compiled once for each of them
# and each precision of the vectors, and coded_product_kernels.cu for each precision; entries of float64 go with double
# alone.
set(element_types float64 float32 float16 bfloat16)

# Adds the compiled kernels to `target`, in the language given.
function(mpfast_add_kernels target language)
  set(objects ${target}_kernels)
  add_library(${objects} OBJECT ${cuda_kernel_sources} ${ARGN})
  list(APPEND kernel_targets ${objects})
  foreach(real double float)
    set(objects ${target}_product_codes_${real})
    add_library(${objects} OBJECT csrc/cuda/products/coded_product_kernels.cu)
    target_compile_definitions(${objects} PRIVATE MPFAST_REAL=${real})
    list(APPEND kernel_targets ${objects})
    foreach(storage IN LISTS element_types)
      if(storage STREQUAL float64 AND real STREQUAL float)
        continue()
      endif()
      set(objects ${target}_product_${storage}_${real})
      add_library(${objects} OBJECT csrc/cuda/products/product_kernels.cu)
      target_compile_definitions(${objects} PRIVATE MPFAST_STORAGE=${storage} MPFAST_REAL=${real})
      list(APPEND kernel_targets ${objects})
    endforeach()
  endforeach()
  set_source_files_properties(csrc/cuda/products/product_kernels.cu csrc/cuda/products/coded_product_kernels.cu
                              ${cuda_kernel_sources}
                              PROPERTIES LANGUAGE ${language})
  foreach(objects IN LISTS kernel_targets)
    target_link_libraries(${objects} PRIVATE mpfast_options ${target}_options)
    target_link_libraries(${target} PRIVATE ${objects})
  endforeach()
endfunction()

if(MPFAST_CUDA_EMULATION)
  add_library(_cuda_options INTERFACE)
  target_include_directories(_cuda_options INTERFACE tests)
  # Kernels are compiled as C++: pragmas meant for nvcc are none of the host compiler's business.
  target_compile_options(_cuda_options INTERFACE -x c++ -Wno-unknown-pragmas -Wno-maybe-uninitialized -g -O2 -fsanitize=address
                         -fno-omit-frame-pointer)
  target_link_options(_cuda_options INTERFACE -fsanitize=address)
  pybind11_add_module(_cuda NO_EXTRAS ${cuda_host_sources} tests/emulation/emulation.cpp tests/emulation/runtime.cpp)
  mpfast_add_kernels(_cuda CXX)
  target_link_libraries(_cuda PRIVATE mpfast_options _cuda_options "${OPENBLAS_LIBRARY}")
  return()
endif()

if(MPFAST_CUDA STREQUAL "off")
  message(STATUS "CUDA backend: off")
  return()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(MPFAST_CUDA STREQUAL "on")
    message(FATAL_ERROR "MPFAST_CUDA=on, but no nvcc was found; put it on PATH or set CUDACXX")
  endif()
  message(STATUS "CUDA backend: not built, since no nvcc was found")
  return()
endif()

set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100)
endif()
message(STATUS "CUDA backend: nvcc ${CMAKE_CUDA_COMPILER_VERSION}")

add_library(_cuda_options INTERFACE)
# --resource-usage prints the registers and the shared memory of every kernel.
target_compile_options(_cuda_options INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;--resource-usage;-Xcompiler=-Wall,-Wextra>")
if(MPFAST_WERROR)
  target_compile_options(_cuda_options INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>")
endif()
pybind11_add_module(_cuda NO_EXTRAS ${cuda_host_sources})
mpfast_add_kernels(_cuda CUDA csrc/cuda/machine/runtime.cu)
target_link_libraries(_cuda PRIVATE mpfast_options _cuda_options "${OPENBLAS_LIBRARY}")
set_target_properties(_cuda PROPERTIES INSTALL_RPATH "$ORIGIN" CUDA_VISIBILITY_PRESET hidden)
install(TARGETS _cuda DESTINATION mpfast)
