# The CUDA backend, a module of its own beside _core: a machine without a GPU never loads it.
#
# With nvcc it holds machine code for the data-centre GPUs of compute capability 8.0, 9.0 and 10.0 (which runs on the
# other 8.x and 10.x too; nvcc before 12.8 knows no 10.0) and PTX for what comes later. The runtime is linked statically
# and finds the driver by itself.
# With MPFAST_CUDA_EMULATION the host's compiler compiles the same sources for the emulated device of tests/emulation.
set(cuda_host_sources
  csrc/cuda/masks.cpp
  csrc/cuda/pass_dispatch.cpp
  csrc/cuda/pass_plan.cpp
  csrc/cuda/products.cpp
  csrc/cuda/projection.cpp
  csrc/cuda/streamed.cpp
  csrc/core/abandonable.cpp
  csrc/cpu/small_eigen.cpp
  csrc/cpu/blas.cpp
  csrc/python/bind_cuda_devices.cpp
  csrc/python/bind_cuda_lanczos.cpp
  csrc/python/bind_cuda_masks.cpp
  csrc/python/bind_cuda_products.cpp
  csrc/python/cuda_module.cpp)
set(cuda_kernel_sources csrc/cuda/mask_kernels.cu csrc/cuda/projection_kernels.cu csrc/cuda/vector_kernels.cu)
# pass.cu is compiled once per storage type and precision of the vectors.
set(cuda_passes float64:double float32:double float16:double bfloat16:double float32:float float16:float bfloat16:float)

# Adds the compiled kernels to `target`, in the language given.
function(mpfast_add_kernels target language)
  set(objects ${target}_kernels)
  add_library(${objects} OBJECT ${cuda_kernel_sources} ${ARGN})
  list(APPEND kernel_targets ${objects})
  foreach(types IN LISTS cuda_passes)
    string(REPLACE ":" ";" types "${types}")
    list(GET types 0 storage)
    list(GET types 1 real)
    set(objects ${target}_pass_${storage}_${real})
    add_library(${objects} OBJECT csrc/cuda/pass.cu)
    target_compile_definitions(${objects} PRIVATE MPFAST_STORAGE=${storage} MPFAST_REAL=${real})
    list(APPEND kernel_targets ${objects})
  endforeach()
  set_source_files_properties(csrc/cuda/pass.cu ${cuda_kernel_sources} PROPERTIES LANGUAGE ${language})
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
mpfast_add_kernels(_cuda CUDA csrc/cuda/runtime.cu)
target_link_libraries(_cuda PRIVATE mpfast_options _cuda_options "${OPENBLAS_LIBRARY}")
set_target_properties(_cuda PROPERTIES INSTALL_RPATH "$ORIGIN" CUDA_VISIBILITY_PRESET hidden)
install(TARGETS _cuda DESTINATION mpfast)
