# Private. Rows and columns of a first non-finite entry are -1 when there is none. threads <= 0: every core. `factors`:
# what the rows and what the columns of the matrix are multiplied by, (m,) and (n,); the matrix is then what they make
# of it.
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

@final
class Matrix:
    def __init__(self, array: NDArray[Any], dtype: str) -> None: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def owner(self) -> Any: ...

    # Floating-point codes (rows, bytes) times scales (rows, blocks of `width` entries), rounded to float32; `dtype` is
    # the type that holds all of the products. The owner is what was given, without it.
    @staticmethod
    def of_codes(
        code: str, codes: NDArray[np.uint8], scales: NDArray[np.float32], width: int, dtype: str
    ) -> Matrix: ...
    @property
    def is_coded(self) -> bool: ...
    def decoded(self) -> NDArray[np.float32]: ...

def code_names() -> list[str]: ...
def isa() -> str: ...
def blas() -> str: ...
def begin_loop_log() -> None: ...
def end_loop_log() -> list[tuple[int, float]]: ...
def default_threads() -> int: ...
def scale_exponent(matrix: Matrix, factors: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None) -> int: ...

# Products. x holds one vector per row, in C order: (width, dim) of float32 or float64 (float64 storage: float64 only).
# gram_product also returns the sum of squares of 2^-scale_exponent W (NaN where not `norm`, which saves some work), the
# number of non-finite entries, and the row and column of the first; where given, it fills `energies`, (m,) and (n,),
# with the sums of the squares of its rows and columns.
def gram_product(
    matrix: Matrix,
    x: NDArray[Any],
    side: str,
    threads: int,
    scale_exponent: int = 0,
    factors: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    energies: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    norm: bool = True,
) -> tuple[NDArray[Any], float, int, int, int]: ...
def energies(
    matrix: Matrix,
    scale_exponent: int,
    threads: int,
    factors: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], int, int, int]: ...
def multiply(
    matrix: Matrix, x: NDArray[Any], transpose: bool, threads: int, scale_exponent: int = 0
) -> NDArray[Any]: ...

# Adds X^T X to the upper triangle of sums, (columns, columns) in C order; what is below the diagonal stays as it is.
def add_gram(matrix: Matrix, sums: NDArray[np.float64], threads: int) -> None: ...
def dense_product(a: NDArray[np.float64], b: NDArray[np.float64], threads: int) -> NDArray[np.float64]: ...
def read_pass(matrix: Matrix, threads: int) -> int: ...

# Full spectra.
def exact_values(
    matrix: Matrix,
    threads: int,
    factors: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    gram: NDArray[np.float64] | None = None,
    scale_exponent: int = 0,
) -> tuple[NDArray[np.float64], float, int, int, int, str]: ...
def exact_values_of_each(
    matrices: Sequence[Matrix], threads: int
) -> list[tuple[NDArray[np.float64], float, int, int, int, str]]: ...
def gram_matrix(
    matrix: Matrix,
    scale_exponent: int,
    threads: int,
    factors: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> tuple[NDArray[np.float64], int, int, int]: ...
def symmetric_eigenvalues(a: NDArray[np.float64], threads: int) -> NDArray[np.float64]: ...
def symmetric_eigenvectors(a: NDArray[np.float64], threads: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
def largest_eigenvectors(
    a: NDArray[np.float64], count: int, threads: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
def singular_decomposition(
    basis: NDArray[np.float64], image: NDArray[np.float64], threads: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]: ...
def orthonormal_rows(x: NDArray[np.float64], threads: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...

# F (n, rank), and the largest |entry| of A - F F^T, of a finite, positive semidefinite A with a diagonal near 1.
def semidefinite_root(a: NDArray[np.float64], threads: int) -> tuple[NDArray[np.float64], float]: ...

# Block Lanczos.
@final
class LanczosRun:
    def advance(self, steps: int) -> None: ...
    def ritz(
        self, steps: int | None = None, part: int = 0, count: int | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]: ...
    def ritz_vectors(self, count: int, part: int = 0) -> NDArray[Any]: ...
    def values_at(self, numbers: Sequence[int], part: int = 0) -> NDArray[np.float64]: ...
    def values_above(self, theta: float, part: int = 0) -> int: ...
    def residual_near(self, theta: float, part: int = 0) -> float: ...
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
    threads: int,
    factors: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    energies: bool = False,
    parts: int = 1,
) -> LanczosRun: ...
def lanczos_run_operator(
    apply: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    dim: int,
    width: int,
    seed: int,
    stream: int,
    threads: int,
    parts: int = 1,
) -> LanczosRun: ...
def singular_rotation(
    basis: NDArray[Any], image: NDArray[Any], threads: int
) -> tuple[NDArray[np.float64], NDArray[Any], NDArray[Any]]: ...
def spectral_measures(
    blocks: Sequence[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], int, bool]],
    trace: float,
    dim: int,
    long_dim: int,
    exact_trace: bool,
    extension: int,
    dropped_probes: Sequence[int],
    threads: int,
) -> list[tuple[NDArray[np.float64], NDArray[np.float64], int, float]]: ...
def probe_block(dim: int, width: int, seed: int, stream: int) -> NDArray[np.int8]: ...

# Masks. `keep`: one contiguous bool array per matrix, filled in place. Both return None, or what stopped them: the
# number of a matrix with non-finite entries, how many it has, and the row-major index of the first.
def prune_smallest(
    matrices: Sequence[Matrix],
    scales: Sequence[float],
    keep: Sequence[NDArray[np.bool_]],
    pruned: int,
    threads: int,
) -> tuple[int, int, int] | None: ...

@final
class CutSearch:
    def __init__(self, total: int, pruned: int, storage: Sequence[tuple[str, float]]) -> None: ...
    @property
    def done(self) -> bool: ...
    def count(self, matrix: Matrix, scale: float, threads: int) -> tuple[int, int, int] | None: ...
    def narrow(self) -> None: ...
    def write(self, matrix: Matrix, scale: float, keep: NDArray[np.bool_], threads: int) -> None: ...

def keep_largest_of_groups(
    matrices: Sequence[Matrix], keep: Sequence[NDArray[np.bool_]], n: int, m: int, threads: int
) -> tuple[int, int, int] | None: ...
def project_groups(
    matrix: Matrix,
    moments: NDArray[np.float64],
    source: NDArray[np.bool_] | None,
    prior: float,
    keep: NDArray[np.bool_],
    n: int,
    m: int,
    threads: int,
) -> tuple[int, int, int] | None: ...

# Refitting. Weights and masks are changed in place.
def examine_moment(moment: Matrix, threads: int) -> tuple[NDArray[np.float64], float, int, int, int]: ...
def inverse_factor(
    moment: Matrix, unit: float, diagonal: NDArray[np.float64], threads: int
) -> tuple[NDArray[np.float32], int]: ...

# The inverse, and the index at which the matrix is not positive definite, or -1.
def positive_inverse(h: NDArray[np.float64], threads: int) -> tuple[NDArray[np.float64], int]: ...

# tr B^-1 G by group, of stacks (groups, size, size); NaN where B is not positive definite.
def removal_costs(b: NDArray[np.float64], g: NDArray[np.float64], threads: int) -> NDArray[np.float64]: ...
def correlations(moment: Matrix, roots: NDArray[np.float64], threads: int) -> NDArray[np.float32]: ...
def leading_part(symmetric: NDArray[np.float32], probes: NDArray[np.int8], threads: int) -> NDArray[np.float32]: ...
def obs_columns(
    weights: NDArray[np.float32],
    keep: NDArray[np.bool_],
    factor: NDArray[np.float32],
    pruned: int | None,
    pattern: tuple[int, int] | None,
    grid: tuple[int, int, bool, NDArray[np.float32], NDArray[np.float32]] | None,
    threads: int,
) -> None: ...
def refit(
    target: NDArray[np.float32],
    weights: NDArray[np.float32],
    keep: NDArray[np.bool_],
    symmetric: NDArray[np.float32],
    roots: NDArray[np.float32],
    basis: NDArray[np.float32],
    base: float,
    steps: int,
    threads: int,
) -> None: ...
def product(a: NDArray[np.float32], b: NDArray[np.float32], threads: int) -> NDArray[np.float32]: ...
def quadratic_error(
    target: Matrix, weights: Matrix | None, moment: NDArray[np.float64], unit: tuple[float, float], threads: int
) -> float: ...

# Quantised weights.
def scaled_codes(
    codes: NDArray[np.uint8], table: NDArray[np.float32], scales: NDArray[np.float32], width: int
) -> NDArray[np.float32]: ...
