"""What can be done with layers that were analysed: found by name, selected, drawn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar, overload

from mpfast.checkpoints import NameFilter, name_filter
from mpfast.models.layer_report import LayerReport, row_figures
from mpfast.models.noise_verdict import WHAT_IS_NORMAL
from mpfast.models.plot import plot_analysis
from mpfast.models.rows import Rows
from mpfast.models.skipped import SkippedTensor
from mpfast.support import InvalidValueError, front_door

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LayerRows"]

Selected = TypeVar("Selected", bound="LayerRows")

_LEFT_OUT = "left out of this selection"


class LayerRows(Rows[LayerReport]):
    """An immutable sequence of `LayerReport`; the result is one of its dataclasses, whose selections are such, too."""

    layers: tuple[LayerReport, ...]
    skipped: tuple[SkippedTensor, ...]

    def _rows(self) -> tuple[LayerReport, ...]:
        return self.layers

    @overload
    def __getitem__(self, index: int | str) -> LayerReport: ...
    @overload
    def __getitem__(self: Selected, index: slice) -> Selected: ...
    def __getitem__(self: Selected, index: int | slice | str) -> LayerReport | Selected:
        if isinstance(index, slice):
            return self._selected(self.layers[index])
        return super().__getitem__(index)

    def _selected(self: Selected, rows: Iterable[LayerReport]) -> Selected:
        """Return the result with some of the rows; the others are among its skipped tensors."""
        kept = tuple(rows)
        names = {row.name for row in kept}
        others = (
            SkippedTensor(row.name, row.tensor_shape if row.name == row.tensor else row.shape, row.dtype, _LEFT_OUT)
            for row in self.layers
            if row.name not in names
        )
        return self._with(kept, (*self.skipped, *others))

    @abstractmethod
    def _with(self: Selected, layers: tuple[LayerReport, ...], skipped: tuple[SkippedTensor, ...]) -> Selected:
        """Return the result with these in the place of its own."""

    def _columns_shown(self) -> dict[str, Callable[[LayerReport], str]]:
        return row_figures(self.layers) | {"layer": lambda row: f"{row.name} !" if row.warnings else row.name}

    def _notes_shown(self) -> tuple[str, ...]:
        count = sum(bool(row.warnings) for row in self.layers)
        marked = f"! {count} {'layer has' if count == 1 else 'layers have'} warnings; a layer shows its own."
        return (marked, WHAT_IS_NORMAL) if count else (WHAT_IS_NORMAL,)

    @front_door
    def plot(self, ax: Axes | None = None, *, measure: str | Callable[[LayerReport], float] = "share") -> Axes:
        """Draw a measure of all layers as a heat map of depth by type; ``show()`` is never called.

        The depth is the first number in a layer's name, ``-`` where there is none; its type the name without numbers. A
        cell with several layers, experts for example, is of their mean, and says how many they are.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to draw on; default the current ones.
        measure : str or callable
            One of `mpfast.models.NUMBER_COLUMNS`, or a function from a `LayerReport` to a number.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ValueError
            There is no such measure, or no layer.
        ImportError
            matplotlib is not installed.
        """
        return plot_analysis(self.layers, measure, ax)

    @front_door
    def filter(
        self: Selected,
        include: NameFilter = None,
        *,
        exclude: NameFilter = None,
        where: Callable[[LayerReport], bool] | None = None,
    ) -> Selected:
        """Return the analysis of some of the layers; the others are among its skipped tensors.

        Parameters
        ----------
        include, exclude : str, iterable of str or callable, optional
            Glob patterns of names, or functions of a name, as in `mpfast.analyze`.
        where : callable, optional
            A function from a `LayerReport` to whether it stays.

        Returns
        -------
        Analysis

        Raises
        ------
        ValueError
            No layer has a name that `include` matches.

        Examples
        --------
        >>> import numpy as np, mpfast
        >>> rng = np.random.default_rng(0)
        >>> names = ("0.q.weight", "0.k.weight", "1.q.weight", "1.k.weight")
        >>> analysis = mpfast.analyze({name: rng.standard_normal((64, 96)) for name in names})
        >>> [row.name for row in analysis.filter("*.q.*", exclude="0.*")], analysis["1.k.weight"].shape
        (['1.q.weight'], (64, 96))
        """
        wanted, unwanted = name_filter(include, "include"), name_filter(exclude, "exclude")
        rows = [row for row in self.layers if wanted is None or wanted(row.name)]
        if wanted is not None and not rows:
            raise InvalidValueError("include", f"matches none of the {len(self.layers)} layers")
        return self._selected(
            row for row in rows if not (unwanted is not None and unwanted(row.name)) and (where is None or where(row))
        )
