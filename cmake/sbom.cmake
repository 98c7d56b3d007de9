# Writes a software bill of materials (CycloneDX 1.6, PEP 770) of what the wheel carries beside our own code, and installs
# it into the wheel's metadata. The same sources and dependencies give the same file: it holds no date and no serial number.
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c "import importlib.metadata as m; print(m.version('scipy-openblas32'))"
  OUTPUT_VARIABLE openblas_version OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
file(SHA256 "${OPENBLAS_LIBRARY}" openblas_sha256)
get_filename_component(openblas_file "${OPENBLAS_LIBRARY}" NAME)

# Name, version, SPDX licence, type, purl, and properties as JSON.
set(components "")
function(mpfast_component name version licence type purl extra)
  set(entry "    {\n      \"type\": \"${type}\",\n      \"name\": \"${name}\",\n      \"version\": \"${version}\",\n")
  string(APPEND entry "      \"licenses\": [{\"expression\": \"${licence}\"}]")
  if(purl)
    string(APPEND entry ",\n      \"purl\": \"${purl}\"")
  endif()
  string(APPEND entry "${extra}\n    }")
  list(APPEND components "${entry}")
  set(components "${components}" PARENT_SCOPE)
endfunction()

mpfast_component("scipy-openblas32" "${openblas_version}" "BSD-3-Clause" "library"
  "pkg:pypi/scipy-openblas32@${openblas_version}"
  ",\n      \"hashes\": [{\"alg\": \"SHA-256\", \"content\": \"${openblas_sha256}\"}],\n      \"description\": \"OpenBLAS with the reference LAPACK, as mpfast/${openblas_file} before the repair of the wheel\"")
mpfast_component("libgfortran and libquadmath" "linked into scipy-openblas32 ${openblas_version}"
  "GPL-3.0-or-later WITH GCC-exception-3.1 AND LGPL-2.1-or-later" "library" "" "")
mpfast_component("pybind11" "${pybind11_VERSION}" "BSD-3-Clause" "library" "pkg:pypi/pybind11@${pybind11_VERSION}"
  ",\n      \"description\": \"Headers compiled into the modules\"")
if(TARGET _cuda AND CMAKE_CUDA_COMPILER_VERSION)
  mpfast_component("CUDA runtime" "${CMAKE_CUDA_COMPILER_VERSION}" "LicenseRef-NVIDIA-CUDA-EULA" "library" ""
    ",\n      \"description\": \"Linked statically into mpfast._cuda\"")
endif()
list(JOIN components ",\n" components)

set(sbom "${CMAKE_CURRENT_BINARY_DIR}/mpfast.cdx.json")
file(WRITE "${sbom}" "{
  \"bomFormat\": \"CycloneDX\",
  \"specVersion\": \"1.6\",
  \"version\": 1,
  \"metadata\": {
    \"component\": {
      \"type\": \"library\",
      \"name\": \"mpfast\",
      \"version\": \"${SKBUILD_PROJECT_VERSION_FULL}\",
      \"licenses\": [{\"expression\": \"Apache-2.0\"}]
    }
  },
  \"components\": [
${components}
  ]
}
")
if(SKBUILD_METADATA_DIR)
  install(FILES "${sbom}" DESTINATION "${SKBUILD_METADATA_DIR}/sboms")
endif()
