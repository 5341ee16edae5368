# libruntime_ops_cuda: everything in libruntime_ops, and TopKAttention for CUDA. With -DGRAFT_CUDA=ON; needs
# nvcc 12 or newer, at build time only: the CUDA runtime is linked in, the driver is found when first used.
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "GRAFT_CUDA=ON needs nvcc: put it on the PATH, or name it with -DCMAKE_CUDA_COMPILER=")
endif()

# Machine code for the GPUs that graft is tuned for, and PTX that newer ones compile for themselves.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known ERROR_QUIET)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
  if(known MATCHES "sm_100")
    list(APPEND CMAKE_CUDA_ARCHITECTURES 100-real)
  endif()
endif()
enable_language(CUDA)

get_target_property(sources runtime_ops SOURCES)
list(REMOVE_ITEM sources ort.cc)  # cuda_ort.cc takes its place
add_library(runtime_ops_cuda SHARED ${sources} cuda_ort.cc cuda_ort_kernel.cc
  topk_attention/cuda_capi.cu topk_attention/plan.cu topk_attention/exact.cu topk_attention/topk_tiles.cu topk_attention/decode.cu
  topk_attention/backward.cu)

set_target_properties(runtime_ops_cuda PROPERTIES
  CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON CXX_EXTENSIONS OFF
  CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Static
  CXX_VISIBILITY_PRESET hidden CUDA_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON
  POSITION_INDEPENDENT_CODE ON LINK_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/exports.map")
target_compile_definitions(runtime_ops_cuda PRIVATE GRAFT_VERSION="${GRAFT_VERSION}")
target_compile_options(runtime_ops_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:--threads=0>
  $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=fast -fno-math-errno -fno-strict-aliasing -Wall -Wextra -Wno-unused-function>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Release>>:-O3>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CXX_COMPILER_ID:GNU>>:-Wno-maybe-uninitialized -Wno-uninitialized>)
find_package(CUDAToolkit REQUIRED)
target_include_directories(runtime_ops_cuda PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_link_options(runtime_ops_cuda PRIVATE -static-libgcc -static-libstdc++
  "LINKER:--version-script=${CMAKE_CURRENT_SOURCE_DIR}/exports.map" LINKER:--no-undefined)
