"""Sources whose matrix is multiplied by a GPU; methods as in `mpfast.operators.protocol.Source`."""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import Device, address_of, check_matrix, cuda_backend, device_matrix, raise_if_nonfinite
from mpfast.operators.factors import Energies, Factored, Factors, times
from mpfast.operators.host import MatrixSource
from mpfast.operators.protocol import LanczosRun, gram_memory
from mpfast.support import InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    from mpfast import _cuda


Array = NDArray[np.float64]

# Share of the free device memory that a matrix may be copied into; a larger one streams through the device. Two layers
# of a model may be on their way to a device at the same time. The partial results of a product in two passes come on
# top: a quarter of a matrix of 16-bit entries, an eighth of others, half of one of 16 bits in double precision. They do
# not shrink with codes, which therefore count as entries of 16 bits.
RESIDENT_SHARE = 0.4
# Device memory for one panel of a streamed matrix; there are two.
PANEL_BYTES = 256 << 20
# From this order on, a GPU's eigenvalue solver gains more than the way to it costs.
DEVICE_EIGENVALUES_FROM = 1024
# As in the exact path on the host: the largest relative error that forming W^T W may leave at the lower quartile.
QUARTILE_TOLERANCE = 1e-6


class DeviceSource(Factored):
    """A matrix in device memory."""

    exact_norm = True
    factors: Factors | None = None

    def __init__(self, matrix: _cuda.Matrix, threads: int) -> None:
        self.backend = cuda_backend()
        self.matrix = matrix
        self.threads = threads
        self.shape: tuple[int, int] = matrix.shape
        self.dtype: str = matrix.dtype
        self.device = f"cuda:{matrix.device}"
        self.scale_exponent: int = self.backend.scale_exponent(matrix)

    def scaled(self, factors: Factors) -> DeviceSource:
        other = copy.copy(self)
        other.factors = factors
        other.scale_exponent = self.backend.scale_exponent(self.matrix, factors.pair) + factors.exponent
        return other

    def energies(self, run: LanczosRun | None) -> Energies | None:
        if run is not None and run.energies is not None:
            return run.energies
        rows, columns, nonfinite, row, col = self.backend.energies(
            self.matrix, self.kernel_exponent, self.kernel_factors
        )
        raise_if_nonfinite("W", nonfinite, (row, col))
        return rows, columns

    def start(
        self, width: int, seed: int, stream: int, *, precise: bool, energies: bool = False, parts: int = 1
    ) -> _cuda.LanczosRun:
        double = precise or (self.factors is not None and self.factors.need_double)
        run: _cuda.LanczosRun = self.backend.lanczos_run(
            self.matrix,
            width,
            seed,
            stream,
            self.kernel_exponent,
            double,
            factors=self.kernel_factors,
            energies=energies,
            parts=parts,
        )
        return run

    def squared_norm(self, measured: float) -> float | None:
        return measured

    def singular_values(self, *, keep_gram: bool = False) -> tuple[Array, float, bool]:
        gram = self.gram()
        unit = 2.0**self.scale_exponent
        fro_norm = float(np.sqrt(np.trace(gram))) * unit
        rank = int(np.count_nonzero(np.diagonal(gram)))
        values = np.sqrt(np.maximum(self._eigenvalues(gram)[::-1], 0.0))
        if rank and _loses_the_quartile(values[:rank]):
            # Too badly conditioned for W^T W: the host's bidiagonalisation decides, on a copy.
            on_host = MatrixSource(self._on_host(), self.threads)
            return (on_host if self.factors is None else on_host.scaled(self.factors)).singular_values()
        values[rank:] = 0.0
        return values * unit, fro_norm, True

    def gram(self) -> Array:
        with gram_memory(self.shape):
            gram, nonfinite, row, col = self.backend.gram_matrix(self.matrix, self.kernel_exponent, self.kernel_factors)
        raise_if_nonfinite("W", nonfinite, (row, col))
        symmetric: Array = 0.5 * (gram + gram.T)
        return symmetric

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> NDArray[Any]:
        if self.factors is None:
            return self._product(X, transpose)
        inner, outer = self.factors.across(transpose)
        vectors = times(X.astype(np.float64) if self.factors.need_double else X, inner)
        return times(self._product(vectors, transpose), outer)

    def _product(self, X: NDArray[Any], transpose: bool) -> NDArray[Any]:
        """With the matrix as it is stored."""
        product: NDArray[Any] = self.backend.multiply(
            self.matrix, np.ascontiguousarray(X), transpose, self.kernel_exponent
        )
        return product

    def _eigenvalues(self, gram: Array) -> Array:
        """Ascending, by cuSOLVER where the process has PyTorch or CuPy loaded, else by the host."""
        if len(gram) >= DEVICE_EIGENVALUES_FROM:
            if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
                torch = sys.modules["torch"]
                found = torch.linalg.eigvalsh(torch.from_numpy(gram).to(self.device))
                return np.asarray(found.cpu().numpy())
            if "cupy" in sys.modules:
                cupy = sys.modules["cupy"]
                with cupy.cuda.Device(self.matrix.device):
                    return np.asarray(cupy.linalg.eigvalsh(cupy.asarray(gram)).get())
        return _core.symmetric_eigenvalues(gram, self.threads)

    def _on_host(self) -> _core.Matrix:
        bits, dtype = self.backend.download(self.matrix)
        return _core.Matrix(bits, dtype)


class StreamedSource(MatrixSource):
    """A matrix in host memory, too large for the device: Lanczos runs stream it through, all else happens here."""

    def __init__(self, matrix: _core.Matrix, device: Device, threads: int) -> None:
        super().__init__(matrix, threads)
        self.target = device
        self.device = str(device)

    def start(
        self, width: int, seed: int, stream: int, *, precise: bool, energies: bool = False, parts: int = 1
    ) -> LanczosRun:
        run: _cuda.LanczosRun = self.target.backend.lanczos_run_streamed(
            self.matrix.owner,
            self.dtype,
            self.target.index,
            width,
            seed,
            stream,
            self.kernel_exponent,
            precise or (self.factors is not None and self.factors.need_double),
            PANEL_BYTES,
            factors=self.kernel_factors,
            energies=energies,
            parts=parts,
        )
        return run


def _loses_the_quartile(values: Array) -> bool:
    """Whether rounding in W^T W spoils the lower quartile of ``values`` (descending)."""
    quartile = values[(3 * len(values)) // 4]
    unit = np.finfo(np.float64).eps / 2
    return bool(unit * values[0] ** 2 > QUARTILE_TOLERANCE * quartile**2)


def device_gram_product(source: DeviceSource, X: Any, side: str) -> Any:
    """Gram product of vectors in device memory, PyTorch's or CuPy's, shape (dim, b) or (dim,); nothing leaves it."""
    rows, cols = source.shape
    dim = cols if side == "right" else rows
    if len(X.shape) not in (1, 2) or X.shape[0] != dim or 0 in X.shape:
        raise InvalidValueError(
            "X", f"must have shape ({dim}, b) for side={side!r} of a {rows} x {cols} matrix, not {tuple(X.shape)}"
        )
    dtype = "float64" if source.dtype == "float64" else "float32"
    x, z = _vectors_on_device(X.reshape(dim, -1).T, dtype)
    for first in range(0, len(x), 32):
        width = min(32, len(x) - first)
        _, nonfinite, row, col = source.backend.gram_product_at(
            source.matrix, address_of(x[first:]), address_of(z[first:]), width, dtype, side == "right"
        )
        raise_if_nonfinite("W", nonfinite, (row, col))
    return z.T.reshape(X.shape)


def _vectors_on_device(x: Any, dtype: str) -> tuple[Any, Any]:
    """Contiguous rows of ``x`` in the precision of the products, and room for the result."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        framework: Any = torch
        vectors = x.detach().to(getattr(torch, dtype)).contiguous()
    elif type(x).__module__.split(".")[0] == "cupy":
        framework = sys.modules["cupy"]
        vectors = framework.ascontiguousarray(x, dtype=dtype)
    else:
        raise InvalidTypeError("X", f"on a GPU must be a PyTorch or CuPy array, not {type(x).__name__}")
    if not bool(framework.isfinite(vectors).all()):
        raise InvalidValueError("X", "has non-finite entries (NaN or inf)", "clean it first")
    return vectors, framework.empty_like(vectors)


def open_device_array(W: Any, threads: int) -> DeviceSource:
    """View an array that is already on a GPU."""
    check_matrix(tuple(W.shape), str(W.dtype).removeprefix("torch."), "W")
    return DeviceSource(device_matrix(W, cuda_backend()), threads)


def has_contiguous_rows(array: NDArray[Any]) -> bool:
    """Whether rows lie one behind the other in memory, perhaps with gaps."""
    (step, stride), length = array.strides, array.shape[1] * array.itemsize
    return stride == array.itemsize and (len(array) == 1 or step >= length)


def send_to_device(matrix: _core.Matrix, device: Device, threads: int) -> DeviceSource | StreamedSource:
    """Copy a host matrix to the device as it is stored if there is room, else let it stream through."""
    if matrix.is_coded:
        matrix = _with_rows_in_order(matrix)
        counted = 2 * matrix.shape[0] * matrix.shape[1]
    else:
        array: NDArray[Any] = matrix.owner
        if not any(has_contiguous_rows(view) for view in (array, array.T)):
            raise InvalidValueError("W", f"must have contiguous rows or columns to go to {device}", "pass W.copy()")
        counted = array.nbytes
    if counted <= RESIDENT_SHARE * device.backend.free_memory(device.index):
        return DeviceSource(device.backend.Matrix.upload(matrix.owner, matrix.dtype, device.index), threads)
    return StreamedSource(matrix, device, threads)


def _with_rows_in_order(matrix: _core.Matrix) -> _core.Matrix:
    """Copy codes and scales whose rows overlap or lie the other way round in memory."""
    code, codes, scales, width = matrix.owner
    if not has_contiguous_rows(codes):
        codes = np.ascontiguousarray(codes)
    if not has_contiguous_rows(scales):
        scales = np.ascontiguousarray(scales)
    return _core.Matrix.of_codes(code, codes, scales, width, matrix.dtype)
