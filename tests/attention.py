"""An attention whose projections share their input, and the moment of some rows."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")


def moment_of(rows: Any) -> Any:
    return rows.double().T @ rows.double() / len(rows)


class Attention(torch.nn.Module):
    """Three layers that are handed the same tensor, and one that is handed another."""

    def __init__(self, d: int = 12) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (torch.nn.Linear(d, d) for _ in range(4))

    def forward(self, x: Any) -> Any:
        return self.o(torch.tanh(self.q(x) + self.k(x) - self.v(x)))
