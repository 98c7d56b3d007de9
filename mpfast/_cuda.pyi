# Private. Addresses and stream handles are integers; strides count entries. As _core unless said otherwise.
from collections.abc import Sequence
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

class CudaError(RuntimeError): ...

# In host memory: entries, or the type of codes, codes (rows, bytes), scales (rows, blocks) and the entries of a block.
_HostMatrix: TypeAlias = NDArray[Any] | tuple[str, NDArray[np.uint8], NDArray[np.float32], int]

@final
class Matrix:
    def __init__(
        self,
        address: int,
        dtype: str,
        shape: tuple[int, int],
        strides: tuple[int, int],
        device: int,
        stream: int,
        owner: object,
    ) -> None: ...
    @staticmethod
    def from_dlpack(capsule: object, stream: int) -> Matrix: ...
    @staticmethod
    def upload(matrix: _HostMatrix, dtype: str, device: int) -> Matrix: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def is_coded(self) -> bool: ...
    @property
    def device(self) -> int: ...

def download(matrix: Matrix) -> tuple[NDArray[Any], str]: ...
def device_count() -> tuple[int, str]: ...
def device_of(address: int) -> int: ...
def driver_version() -> str: ...
def free_memory(device: int) -> int: ...
def describe(device: int) -> tuple[str, str, int, int]: ...

# Products.
def scale_exponent(matrix: Matrix, factors: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None) -> int: ...
def gram_product(
    matrix: Matrix, x: NDArray[Any], right: bool, scale_exponent: int = 0
) -> tuple[NDArray[Any], float, int, int, int]: ...
def gram_product_at(
    matrix: Matrix,
    x: int,
    z: int,
    width: int,
    dtype: str,
    right: bool,
    scale_exponent: int = 0,
    with_stats: bool = True,
) -> tuple[float, int, int, int]: ...
def multiply(matrix: Matrix, x: NDArray[Any], transpose: bool, scale_exponent: int = 0) -> NDArray[Any]: ...
def energies(
    matrix: Matrix, scale_exponent: int, factors: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], int, int, int]: ...
def gram_matrix(
    matrix: Matrix, scale_exponent: int, factors: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
) -> tuple[NDArray[np.float64], int, int, int]: ...
def plan_product(
    kind: str,
    dtype: str,
    rows: int,
    cols: int,
    real_bytes: int,
    width: int,
    shared_bytes: int,
    largest_cluster: int,
) -> dict[str, Any]: ...

# Block Lanczos.
@final
class LanczosRun:
    def advance(self, steps: int) -> None: ...
    def ritz(
        self, steps: int | None = None, part: int = 0, count: int | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]: ...
    def ritz_vectors(self, count: int, part: int = 0) -> NDArray[Any]: ...
    @property
    def parts(self) -> list[tuple[int, bool]]: ...
    @property
    def steps(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def exhausted(self) -> bool: ...
    @property
    def zero_coordinates(self) -> int: ...
    @property
    def energies(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None: ...
    @property
    def stats(self) -> tuple[float, int, int, int]: ...

def lanczos_run(
    matrix: Matrix,
    width: int,
    seed: int,
    stream: int,
    scale_exponent: int,
    precise: bool,
    factors: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    energies: bool = False,
    parts: int = 1,
) -> LanczosRun: ...
def lanczos_run_streamed(
    matrix: _HostMatrix,
    dtype: str,
    device: int,
    width: int,
    seed: int,
    stream: int,
    scale_exponent: int,
    precise: bool,
    panel_bytes: int,
    factors: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    energies: bool = False,
    parts: int = 1,
) -> LanczosRun: ...

# Masks: `keep` holds the device address of every mask.
def prune_smallest(
    matrices: Sequence[Matrix], scales: Sequence[float], keep: Sequence[int], pruned: int
) -> tuple[int, int, int] | None: ...
def keep_largest_of_groups(
    matrices: Sequence[Matrix], keep: Sequence[int], n: int, m: int
) -> tuple[int, int, int] | None: ...
def project_groups(
    matrix: Matrix, moments: NDArray[np.float64], source: int, prior: float, keep: int, n: int, m: int
) -> tuple[int, int, int] | None: ...

# Refitting. Factors and moments are float32 without gaps.
@final
class LayerWeights:
    def __init__(self, matrix: Matrix, factor: float, rows: NDArray[np.float32] | None) -> None: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def kept(self) -> int: ...
    def take_mask(self, keep: int) -> None: ...
    def obs_columns(
        self,
        factor: Matrix,
        pruned: int | None,
        pattern: tuple[int, int] | None,
        grid: tuple[int, int, bool] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None: ...
    def refit(self, symmetric: Matrix, roots: Matrix, basis: Matrix | None, base: float, steps: int) -> None: ...
    def scale_rows(
        self, symmetric: Matrix, roots: Matrix, shares: Matrix, least: float, largest: float, rounding: float
    ) -> None: ...
    def store(self, weights: int, keep: int, factor: float) -> None: ...

def largest_magnitude(matrix: Matrix) -> float: ...
def find_nonfinite(matrix: Matrix) -> tuple[int, int]: ...
def gather(matrix: Matrix, to: int) -> None: ...
def dense_product(a: Matrix, b: Matrix) -> NDArray[np.float32]: ...
