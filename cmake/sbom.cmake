# The bill of materials, written by sbom.py and installed into the wheel's metadata. Only wheels have either.
if(NOT SKBUILD_METADATA_DIR)
  return()
endif()
set(sbom "${CMAKE_CURRENT_BINARY_DIR}/mpfast.cdx.json")
set(sbom_options --version "${SKBUILD_PROJECT_VERSION_FULL}" --openblas "${OPENBLAS_RUNTIME}"
                 --pybind11 "${pybind11_VERSION}")
if(TARGET _cuda AND CMAKE_CUDA_COMPILER_VERSION)
  list(APPEND sbom_options --cuda "${CMAKE_CUDA_COMPILER_VERSION}")
endif()
execute_process(COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/sbom.py" "${sbom}" ${sbom_options}
                COMMAND_ERROR_IS_FATAL ANY)
install(FILES "${sbom}" DESTINATION "${SKBUILD_METADATA_DIR}/sboms")
