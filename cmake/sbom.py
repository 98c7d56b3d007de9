"""Writes a software bill of materials (CycloneDX 1.6, PEP 770) of what a wheel carries beside our own code.

The same sources and dependencies give the same file: it holds no date and no serial number.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any


def fortran_version(library: bytes) -> str | None:
    """Version of the GCC whose Fortran runtime is linked into `library`, where that says so."""
    patterns = [rb"GCC: \([^)]*\) ([0-9.]+)", rb"gcc-([0-9.]+)/libgfortran", rb"/gcc/[^/\0]+/([0-9.]+)"]
    found = [match.decode() for pattern in patterns for match in re.findall(pattern, library)]
    return max(found, key=lambda version: [int(part) for part in version.split(".") if part], default=None)


def component(name: str, version: str | None, licence: str, description: str, **more: Any) -> dict[str, Any]:
    """Return an entry of the file, without what is not known."""
    entry = {"type": "library", "name": name, "version": version, "description": description}
    entry["licenses"] = [{"expression": licence}]
    return {key: value for key, value in {**entry, **more}.items() if value is not None}


def main() -> None:
    """Take the facts from the command line, the libraries and the build environment; write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--version", required=True, help="of mpfast")
    parser.add_argument("--openblas", type=Path, required=True, help="the library that is installed beside the modules")
    parser.add_argument("--pybind11", required=True, help="version")
    parser.add_argument("--cuda", help="version, where the CUDA backend is part of the wheel")
    options = parser.parse_args()

    openblas = options.openblas.read_bytes()
    openblas_version = importlib.metadata.version("scipy-openblas32")
    place = f"mpfast/{options.openblas.name}"
    components = [
        component(
            "scipy-openblas32",
            openblas_version,
            "BSD-3-Clause AND BSD-3-Clause-Open-MPI",
            f"OpenBLAS with the reference LAPACK: {place}",
            purl=f"pkg:pypi/scipy-openblas32@{openblas_version}",
            hashes=[{"alg": "SHA-256", "content": hashlib.sha256(openblas).hexdigest()}],
        ),
        component(
            "GCC runtime library",
            fortran_version(openblas),
            "GPL-3.0-or-later WITH GCC-exception-3.1",
            f"Parts of libgfortran and libgcc, linked statically into {place}",
        ),
        component(
            "pybind11",
            options.pybind11,
            "BSD-3-Clause",
            "Headers, compiled into the modules",
            purl=f"pkg:pypi/pybind11@{options.pybind11}",
        ),
    ]
    if options.cuda:
        components.append(
            component(
                "CUDA runtime", options.cuda, "LicenseRef-NVIDIA-CUDA-EULA", "Linked statically into mpfast._cuda"
            )
        )
    ours = component("mpfast", options.version, "Apache-2.0", "The package this file lies in")
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": ours},
        "components": components,
    }
    options.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
