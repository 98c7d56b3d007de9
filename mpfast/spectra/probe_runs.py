"""Block Lanczos runs over one source, each part of one with a stream of probes of its own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.operators import PART_WIDTH, RUN_WIDTH, LanczosRun, Source, start_run
from mpfast.spectra.request import Request

__all__ = ["ProbeRuns"]

Array = NDArray[np.float64]

INITIAL_STEPS = 12
# A basis has no more steps and no more vectors than these, and stays small next to W.
MAX_STEPS = 40
MAX_BASIS = 768


class ProbeRuns:
    """Runs over one source, all at the same number of steps, and what they have found.

    Parts of few probes are cheap, and say as much about a bulk as one of all; what depends on how well the whole
    spectrum is resolved takes the widest.
    """

    def __init__(self, source: Source, request: Request, *, precise: bool, part_width: int = PART_WIDTH) -> None:
        self.source = source
        self.request = request
        self.precise = precise
        self.part_width = part_width
        self.runs: list[LanczosRun] = []
        #: Every part of every run: a Krylov space of its own, and the number of its stream of probes.
        self.parts: list[tuple[LanczosRun, int]] = []
        self._trace: float | None = None
        self._ritz: dict[tuple[int, int], tuple[Array, Array, Array]] = {}  # by part and steps

    @property
    def probes(self) -> int:
        """Number of probes of all runs."""
        return sum(run.width for run in self.runs)

    @property
    def steps(self) -> int:
        """Steps that every run has taken."""
        return min(run.steps for run in self.runs)

    @property
    def dim(self) -> int:
        """Number of singular values that are not known to be zero."""
        return min(self.source.shape) - self.runs[0].zero_coordinates

    @property
    def most_steps(self) -> int:
        """Up to which a basis stays small next to W."""
        width = max(math.ceil(run.width / len(run.parts)) for run in self.runs)
        return min(MAX_STEPS, MAX_BASIS // width, min(self.source.shape) // 2 // width)

    def add_probes(self, count: int) -> None:
        """Start runs for ``count`` more probes, in blocks of equal width, and bring them up to the others."""
        p = min(self.source.shape)
        first_steps = self.request.steps or min(INITIAL_STEPS, p // 2 // 4)
        steps = self.steps if self.runs else int(first_steps)
        part_width = max(1, min(self.part_width, p // 2 // steps))
        for width in _split(count, math.ceil(count / (RUN_WIDTH // part_width * part_width))):
            stream, parts = len(self.parts), math.ceil(width / part_width)
            run, self.source = start_run(
                self.source,
                width,
                int(self.request.seed),
                stream,
                steps,
                precise=self.precise,
                energies=stream == 0,
                parts=parts,
            )
            self.runs.append(run)
            self.parts += [(run, part) for part in range(parts)]

    def advance(self, steps: int) -> None:
        """Take ``steps`` further steps in every run."""
        for run in self.runs:
            run.advance(steps)

    @property
    def in_double(self) -> bool:
        """Whether products are formed in fp64."""
        return self.precise or self.source.dtype == "float64"

    def blocks(self, steps: int) -> list[Any]:
        """Ritz values, residuals and weights of every part, its steps, and whether its space has closed."""
        blocks: list[Any] = []
        for stream, (run, part) in enumerate(self.parts):
            taken, closed = run.parts[part]
            at = min(steps, taken)
            blocks.append((*self._ritz_values(stream, at), at, closed and at == taken))
        return blocks

    def _ritz_values(self, stream: int, steps: int) -> tuple[Array, Array, Array]:
        """Of a run after ``steps`` steps; further steps do not change them."""
        if (stream, steps) not in self._ritz:
            run, part = self.parts[stream]
            self._ritz[stream, steps] = run.ritz(steps, part)
        return self._ritz[stream, steps]

    def squared_norm(self, blocks: list[Any]) -> float:
        """Trace of the scaled Gram operator: from the first pass, from the source, or estimated from the probes."""
        if self._trace is None:
            self._trace = self.source.squared_norm(self.runs[0].stats[0])
        if self._trace is not None:
            return self._trace
        first_moment = sum(float((weight @ theta).sum()) for theta, _, weight, *_ in blocks)
        mass = sum(float(weight.sum()) for _, _, weight, *_ in blocks)
        return self.dim * first_moment / mass


def _split(count: int, parts: int) -> list[int]:
    """Cut ``count`` into ``parts`` nearly equal widths."""
    return [count // parts + (i < count % parts) for i in range(parts)]
