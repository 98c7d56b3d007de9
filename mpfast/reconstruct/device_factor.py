"""What a `Factor` gives, on a GPU."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import cuda_backend, device_matrix
from mpfast.reconstruct.factor import Factor
from mpfast.support import KeptProperty

if TYPE_CHECKING:
    from mpfast import _cuda

__all__ = ["DeviceFactor", "inverse_factor_by_torch"]

# Share of the free device memory that a factorisation there may take: four matrices of doubles.
_FACTOR_SHARE = 0.5


class DeviceFactor:
    """The properties of a `Factor` of the same names, on one device, each made when it is first needed, and kept.

    Parts are made by the host and copied. U alone is made on the device, in double precision by cuSOLVER, where the
    process has PyTorch loaded with CUDA, the host has not made it yet and there is room: it is what takes the time.
    """

    def __init__(self, factor: Factor, device: int) -> None:
        self._factor = factor
        self._device = device

    @KeptProperty
    def upper(self) -> _cuda.Matrix:
        made = self._made_there()
        return self._sent(self._factor.upper) if made is None else device_matrix(made, cuda_backend())

    @KeptProperty
    def correlations(self) -> _cuda.Matrix:
        return self._sent(self._factor.correlations)

    @KeptProperty
    def relative_roots(self) -> _cuda.Matrix:
        return self._sent(self._factor.relative_roots[None])

    @KeptProperty
    def damping_shares(self) -> _cuda.Matrix:
        return self._sent(self._factor.damping_shares[None])

    @KeptProperty
    def leading_part(self) -> tuple[_cuda.Matrix | None, float]:
        basis, base = self._factor.leading_part
        return (self._sent(basis) if basis.size else None), base

    def _sent(self, array: NDArray[np.float32]) -> _cuda.Matrix:
        sent: _cuda.Matrix = cuda_backend().Matrix.upload(np.ascontiguousarray(array), "float32", self._device)
        return sent

    def _made_there(self) -> Any:
        """U by PyTorch, finished; None where the host is to make it, or to say why it cannot be made."""
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_available() or "upper" in vars(self._factor):
            return None
        if 4 * 8 * self._factor.inputs**2 > _FACTOR_SHARE * cuda_backend().free_memory(self._device):
            return None
        upper = inverse_factor_by_torch(torch, self._factor.damped_in_units(), f"cuda:{self._device}")
        torch.cuda.synchronize(self._device)
        if upper is None:
            return None
        entries = upper.diagonal()
        # What single precision cannot hold of inputs in units too far apart.
        return upper if bool((entries.isfinite() & (entries > 0)).all()) else None


def inverse_factor_by_torch(torch: Any, H: NDArray[np.float64], device: str) -> Any:
    """Return U, upper triangular, with ``U^T U = H^-1``, in single precision; None if H is not positive definite.

    With rows and columns in reverse order, H is ``L L^T``, and U is ``L^-1`` with its own reversed.
    """
    reversed_moment = torch.from_numpy(H).to(device).flip(0, 1)
    lower, pivot = torch.linalg.cholesky_ex(reversed_moment)
    if int(pivot) != 0:
        return None
    unit = torch.eye(len(H), dtype=lower.dtype, device=device)
    inverse = torch.linalg.solve_triangular(lower, unit, upper=False)
    return inverse.flip(0, 1).float().contiguous()
