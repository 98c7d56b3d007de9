"""Sums of ``x x^T`` over rows x of inputs: of the whole matrix, or of the blocks on its diagonal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mpfast import _core
from mpfast.arrays import as_matrix
from mpfast.integrations.torch.input_sums import mirror
from mpfast.integrations.torch.layers import input_rows
from mpfast.integrations.torch.shared_inputs import Input

__all__ = ["RowSums", "mirror_on_host", "usable_rows"]

_CORE_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class RowSums:
    """How rows are added up; attributes as the options of `SecondMoments`."""

    block: int | None
    layout: str
    threads: int

    def added(self, total: torch.Tensor | None, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Return a sum, if there is one, with these rows added; of a whole matrix on the CPU the upper triangle."""
        if rows.dtype not in _CORE_TYPES or (rows.dtype in _CORE_TYPES[2:] and not self._uses_core(rows)):
            rows = rows.float()
        if self._uses_core(rows):
            if total is None:
                total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
            _core.add_gram(as_matrix(rows, name="x"), total.numpy(), self.threads)
            return total
        product = self._product(module, rows)
        return product.double() if total is None else total.add_(product)

    def _uses_core(self, rows: torch.Tensor) -> bool:
        return self.block is None and rows.device.type == "cpu"

    def _product(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Sum of ``x x^T`` or of its blocks over a few thousand rows, in the precision of the rows."""
        if self.block is None:
            return rows.T @ rows
        if isinstance(module, torch.nn.Conv2d) and self.layout == "channel":
            rows = rows.reshape(len(rows), module.in_channels, -1).transpose(1, 2)
        groups = rows.reshape(len(rows), -1, self.block).transpose(0, 1)
        return groups.transpose(1, 2) @ groups


def usable_rows(given: Input) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield rows, some thousands at a time, and which of them are not padding."""
    valid, x = given.valid, given.x
    padded = valid is not None and not isinstance(given.module, torch.nn.Conv2d) and valid.shape == x.shape[:-1]
    at = 0
    for rows in input_rows(given.module, x):
        if padded and valid is not None:
            yield rows, valid.reshape(-1)[at : at + len(rows)].to(rows.device, torch.bool)
        else:
            yield rows, torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        at += len(rows)


def mirror_on_host(matrix: torch.Tensor) -> None:
    """Copy the upper triangle of a matrix on the CPU to the lower one; blocks, and sums elsewhere, are symmetric."""
    if matrix.dim() == 2 and matrix.device.type == "cpu":
        mirror(matrix.numpy())
