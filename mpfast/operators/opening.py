"""Opening whatever can be multiplied with: a matrix in host or GPU memory, or an operator of somebody else's."""

from __future__ import annotations

from typing import Any

from mpfast.arrays import as_matrix, has_cuda_backend, is_on_gpu, parse_device
from mpfast.operators.dask import DaskOperator, DaskSource, is_dask_array
from mpfast.operators.host import MatrixSource
from mpfast.operators.linear_operator import GramOperator, OperatorSource, is_operator
from mpfast.operators.protocol import Source
from mpfast.support import InvalidValueError

__all__ = ["open_source"]


def open_source(W: Any, *, threads: int, device: str | None = None) -> Source:
    """Turn what the caller handed in into a source; ``device`` None: computed where W lives.

    Raises
    ------
    ValueError, TypeError
        W is nothing that can be multiplied with, or ``device`` is not where it can be.
    """
    target = parse_device(device)
    if target is not None and (is_dask_array(W) or is_operator(W)):
        raise InvalidValueError("W", f"is multiplied by its owner, so device={str(target)!r} has no effect")
    if is_dask_array(W):
        return DaskSource(DaskOperator(W, threads), threads)
    if is_operator(W):
        return OperatorSource(GramOperator(W), threads)
    if is_on_gpu(W) and has_cuda_backend():
        from mpfast.operators.cuda import open_device_array

        source = open_device_array(W, threads)
        if device is not None and str(target or device) != source.device:
            raise InvalidValueError("W", f"is on {source.device}, not on {target or device}", "move it first")
        return source
    matrix = as_matrix(W)
    if target is None:
        return MatrixSource(matrix, threads)
    from mpfast.operators.cuda import send_to_device

    return send_to_device(matrix, target, threads)
