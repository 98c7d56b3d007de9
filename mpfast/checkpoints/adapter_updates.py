"""The updates of an adapter: which factors belong together, what their product is, and by what it is multiplied."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import FLOATS
from mpfast.checkpoints.adapter_names import FactorName, is_lengths, is_of_parameters, names_between, parsed_factor
from mpfast.checkpoints.adapter_settings import (
    AdapterSettings,
    live_settings,
    settings_beside,
    unpacked_settings,
)
from mpfast.checkpoints.base import Checkpoint, TensorInfo, numbers
from mpfast.checkpoints.low_rank_products import KroneckerProduct, LowRankProduct, hadamard_product, tucker_factors
from mpfast.checkpoints.tensor_bits import as_stored, shards_of

__all__ = ["Update", "updated_modules", "updates_of"]

# Files whose loaders multiply by 1 where no alpha is stored: kohya's names (alpha is the rank then), LyCORIS', and what
# diffusers and ComfyUI call the parts of a pipeline. PEFT's own, and torchtune's, have their alpha in another file.
_UNIT_WORDS = re.compile(r"lora_(down|up)$|\.(down|up)$|^(hada|lokr)_")
_UNIT_PARTS = re.compile(r"(transformer(_\d)?|unet|text_encoder(_\d)?|text_model|diffusion_model)\.")
_PEFT = re.compile(r"base_model\.")
_MAGNITUDES = ("lora_magnitude_vector", "dora_scale")

Read = Callable[[str], Any]


@dataclass(frozen=True)
class Update:
    """One update of a weight, known by its factors.

    Attributes
    ----------
    name : str
        ``<module>.lora``, ``<module>.hada`` or ``<module>.lokr``.
    kind : {"pair", "tucker", "hadamard", "kronecker"}
        B A, one of a convolution with a core between its factors, entry by entry (B1 A1) * (B2 A2), or F x G.
    module : str
        What is updated, as the file calls it.
    factors : mapping of str to TensorInfo
        By their words: "A" and "B" of a pair, also with a "core" or AdaLoRA's "E" (r, 1) between them, else LyCORIS'
        own without what comes before (``w1_a``).
    shape : (int, int)
        Of the matrix, (out, in); convolutions unfold to out x (in kh kw).
    rank : int
        Inner extent of the factors, of one expert; 0 of Kronecker factors that are whole.
    count : int
        How many experts it is of: A (count r, in) has the rows of one expert together, B (out, count r) the columns of
        one rank.
    alpha : str
        The tensor that holds alpha; empty where there is none.
    settings : AdapterSettings or None
        Else the configuration that does.
    is_unit : bool
        Whether the update is multiplied by 1 where neither is there.
    magnitude : str
        DoRA's tensor of lengths; empty where there is none.
    """

    name: str
    kind: str
    module: str
    factors: Mapping[str, TensorInfo]
    shape: tuple[int, int]
    rank: int
    count: int = 1
    alpha: str = ""
    settings: AdapterSettings | None = None
    is_unit: bool = False
    magnitude: str = ""

    def scale(self, read: Read) -> float | None:
        """By what the product is multiplied; None where nothing says.

        Parameters
        ----------
        read
            From the name of a tensor to its entries.
        """
        if self.alpha:
            alpha = float(np.asarray(_numbers(read, self.factors["alpha"])).reshape(-1)[0])
            return alpha / self.rank if self.rank else 1.0  # LyCORIS: with whole factors, alpha counts as the rank
        if self.settings is not None:
            agrees = self.settings.has_lengths == ("E" in self.factors)
            return self.settings.scale(self.module, self.rank) if agrees else None
        return 1.0 if self.is_unit else None

    def product(self, read: Read, expert: int = 0, scale: float = 1.0) -> LowRankProduct | KroneckerProduct | Any:
        """Return the matrix, of one expert: its product, or the matrix itself where that is smaller."""
        if self.kind == "pair":
            A, B = self.pair(read, expert)
            return LowRankProduct(A, B, scale)
        stored = {word: _numbers(read, info) for word, info in self.factors.items() if word != "alpha"}
        parts = {word: part.astype(np.float64) for word, part in stored.items()}
        if self.kind == "tucker":
            B, A = tucker_factors(parts["core"], *(parts[word].reshape(parts[word].shape[:2]) for word in ("B", "A")))
            return LowRankProduct(A, B, scale)
        if self.kind == "hadamard":
            return hadamard_product(_two_of(parts, "1"), _two_of(parts, "2"), scale)
        F, G = (parts[f"w{at}"] if f"w{at}" in parts else np.matmul(*_two_of(parts, at)) for at in ("1", "2"))
        return KroneckerProduct(F, G.reshape(len(G), -1), scale)

    def pair(self, read: Read, expert: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return A (r, in) and B (out, r) of a pair, of one expert; what lies between them goes into A."""
        a, b = self.factors["A"], self.factors["B"]
        # Of a stack, the rows and columns of the one expert, before they are widened.
        A = numbers(read(a.name)[expert * self.rank : (expert + 1) * self.rank], a)
        B = numbers(read(b.name)[:, expert :: self.count], b)
        if "E" in self.factors:
            A = A.astype(np.float64) * _numbers(read, self.factors["E"])
        return A.reshape(self.rank, -1), B.reshape(-1, self.rank)


def _two_of(parts: Mapping[str, NDArray[Any]], side: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """The two factors whose product one side of LyCORIS' formulas is; with a core between them, the left one lies."""
    left, right, core = parts[f"w{side}_a"], parts[f"w{side}_b"], parts.get(f"t{side}")
    return (left, right) if core is None else tucker_factors(core, left.T, right)


def updates_of(checkpoint: Checkpoint) -> dict[str, Update]:
    """Return the updates of a checkpoint whose product is known, by name, in the order of their first factors.

    Raises
    ------
    CheckpointError
        The ``adapter_config.json`` beside it is damaged.
    """
    infos = {info.name: info for info in checkpoint.tensors}
    factors = [(info, found) for info in infos.values() if (found := parsed_factor(info.name)) is not None]
    if not factors:
        return {}
    settings = _Settings(checkpoint)
    updates: dict[str, Update] = {}
    for info, factor in factors:
        update = _pair(info, factor, infos, settings) or _of_lycoris(factor, infos, settings)
        if update is not None:
            updates.setdefault(update.name, update)
    return updates


def updated_modules(checkpoint: Checkpoint) -> list[str]:
    """Return the modules that have updates of any kind, as the checkpoint calls them."""
    factors = (parsed_factor(info.name) for info in checkpoint.tensors if len(info.shape) >= 2)
    return list(dict.fromkeys(factor.module for factor in factors if factor is not None))


class _Settings:
    """What the configurations of an adapter say of its modules: in a live model, beside the file, or in its header."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        shards = shards_of(as_stored(checkpoint))
        self._live = live_settings(checkpoint)
        self._beside = settings_beside(checkpoint)
        self._inside = unpacked_settings(shards[0].metadata) if shards else {}

    def of(self, factor: FactorName) -> AdapterSettings | None:
        live = self._live.get(factor.adapter[1:])  # without the dot before it
        if live is not None or self._beside is not None:
            return live or self._beside
        return next((found for prefix, found in self._inside.items() if factor.module.startswith(prefix)), None)


def _pair(info: TensorInfo, factor: FactorName, infos: Mapping[str, TensorInfo], settings: _Settings) -> Update | None:
    """The update of a pair, from its first factor."""
    partner = infos.get(factor.partner) if factor.is_first else None
    if partner is None or not _fits(info, partner):
        return None
    found = _Found.of(factor, infos, settings)
    between = [infos[name] for name in names_between(factor) if name in infos]
    if between:
        return _with_core(factor, info, partner, between, found) or _with_lengths(factor, info, partner, between, found)
    rows, inner, count = partner.shape[0], info.shape[0], 1
    if is_of_parameters(factor) or (found.settings is not None and found.settings.is_of_parameters(factor.module)):
        rank = None if found.settings is None else found.settings.rank(factor.module)
        if rank is None or inner % rank:
            return None  # the number of experts is not known
        count = inner // rank
    return found.update(
        factor.product, "pair", {"A": info, "B": partner}, (rows, math.prod(info.shape[1:])), inner // count, count
    )


def _with_core(
    factor: FactorName, A: TensorInfo, B: TensorInfo, between: list[TensorInfo], found: _Found
) -> Update | None:
    """The update of a convolution in three: into (r, in, 1, 1), through (r, r, kh, kw), out of (out, r, 1, 1)."""
    core, *others = between
    called = {factor.named("lora_mid"), factor.named("lora_mid", ".weight")}
    rank = A.shape[0]
    if others or core.name not in called or not _are_numbers(core) or math.prod(A.shape[2:]) != 1:
        return None
    if core.shape[:2] != (rank, rank) or len(core.shape) != len(A.shape) or core.size == 0:
        return None
    shape = (B.shape[0], A.shape[1] * math.prod(core.shape[2:]))
    return found.update(factor.product, "tucker", {"A": A, "core": core, "B": B}, shape, rank)


def _with_lengths(
    factor: FactorName, A: TensorInfo, B: TensorInfo, between: list[TensorInfo], found: _Found
) -> Update | None:
    """The update of AdaLoRA: A (r, in), E (r, 1) and B (out, r), which of a convolution are unfolded."""
    E, *others = between
    plain = len(A.shape) == 2 and found.alpha is None and not is_of_parameters(factor)
    if others or not plain or not is_lengths(E, factor) or E.shape[0] != A.shape[0] or not _are_numbers(E):
        return None
    found = replace(found, is_unit=False)
    return found.update(factor.product, "pair", {"A": A, "E": E, "B": B}, (B.shape[0], A.shape[1]), A.shape[0])


def _fits(A: TensorInfo, B: TensorInfo) -> bool:
    """Whether B (m, r) times A (r, n) is a product; those of a convolution are (m, r, 1, 1) and (r, n, kh, kw).

    MLX has the names of torchtune, but its factors the other way round: there the rank is the larger extent.
    """
    return (
        len(A.shape) >= 2
        and _are_numbers(A, B)
        and A.size * B.size > 0
        and (not re.search(r"lora_a\b", A.name) or A.shape[0] <= min(A.shape[1], B.shape[0]))
        and len(B.shape) in (2, len(A.shape))
        and B.shape[1] == A.shape[0]
        and all(extent == 1 for extent in B.shape[2:])
    )


def _of_lycoris(factor: FactorName, infos: Mapping[str, TensorInfo], settings: _Settings) -> Update | None:
    """The update of LyCORIS' factors, from any of them; those of convolutions may have cores between them."""
    word = factor.which.partition("_")[0]
    if word not in ("hada", "lokr"):
        return None
    words = ("w1", "w1_a", "w1_b", "t1", "w2", "w2_a", "w2_b", "t2")
    names = {name: factor.named(f"{word}_{name}") for name in words}
    parts = {name: infos[full] for name, full in names.items() if full in infos}
    sides = [_side(parts, side) for side in ("1", "2")]
    if not all(sides) or not _are_numbers(*parts.values()):
        return None
    (a, b), (c, d) = (side for side in sides if side is not None)
    found = _Found.of(factor, infos, settings)
    rank = next((parts[name].shape[0] for name in ("w2_b", "w1_b") if name in parts), 0)
    name = factor.named(word, end="")
    if word == "lokr":
        return found.update(name, "kronecker", parts, (a * c, b * d), rank) if a * b * c * d else None
    same = (a, b) == (c, d) and "w1" not in parts and "w2" not in parts
    return found.update(name, "hadamard", parts, (a, b), rank) if same else None


def _side(parts: Mapping[str, TensorInfo], side: str) -> tuple[int, int] | None:
    """Rows and columns of a factor that is whole, or the product of two or three; None where it is neither.

    With a core (r, s, kh, kw), the factors before and behind it are (r, rows) and (s, columns).
    """
    whole, left, right, core = (parts.get(name) for name in (f"w{side}", f"w{side}_a", f"w{side}_b", f"t{side}"))
    if whole is not None:
        alone = left is None and right is None and core is None and len(whole.shape) >= 2
        return (whole.shape[0], math.prod(whole.shape[1:])) if alone else None
    if left is None or right is None or len(left.shape) != 2 or len(right.shape) != 2:
        return None
    if core is None:
        return (left.shape[0], right.shape[1]) if left.shape[1] == right.shape[0] else None
    fits = len(core.shape) > 2 and core.shape[:2] == (left.shape[0], right.shape[0])
    return (left.shape[1], right.shape[1] * math.prod(core.shape[2:])) if fits else None


@dataclass(frozen=True)
class _Found:
    """What belongs to an update beside its factors."""

    module: str
    alpha: TensorInfo | None
    settings: AdapterSettings | None
    is_unit: bool
    magnitude: str

    @classmethod
    def of(cls, factor: FactorName, infos: Mapping[str, TensorInfo], settings: _Settings) -> _Found:
        names = [factor.named(f"{stem}alpha", end="") for stem in ("", f"{factor.stem}.") if stem != "."]
        alpha = next((infos[name] for name in names if name in infos and infos[name].size == 1), None)
        unit = _UNIT_WORDS.search(factor.which) or _UNIT_PARTS.match(factor.module)
        magnitudes = (factor.named(word, end) for word in _MAGNITUDES for end in ("", ".weight"))
        return cls(
            factor.module,
            alpha,
            None if alpha is not None else settings.of(factor),
            unit is not None and _PEFT.match(factor.module) is None,
            next((name for name in magnitudes if name in infos), ""),
        )

    def update(
        self,
        name: str,
        kind: str,
        factors: Mapping[str, TensorInfo],
        shape: tuple[int, int],
        rank: int,
        count: int = 1,
    ) -> Update:
        alpha = {} if self.alpha is None else {"alpha": self.alpha}
        return Update(
            name,
            kind,
            self.module,
            {**factors, **alpha},
            shape,
            rank,
            count,
            "" if self.alpha is None else self.alpha.name,
            self.settings,
            self.is_unit,
            self.magnitude,
        )


def _are_numbers(*infos: TensorInfo) -> bool:
    """Whether all are floating-point numbers, and neither codes nor bits."""
    return all(info.dtype in FLOATS for info in infos)


def _numbers(read: Read, info: TensorInfo) -> Any:
    return numbers(read(info.name), info)
