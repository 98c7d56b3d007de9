"""Names of the factors of updates: PEFT's, kohya's, diffusers', torchtune's, LyCORIS', and of the other adapters."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mpfast.checkpoints.base import Role, TensorInfo

__all__ = ["FactorName", "factor_roles", "is_lengths", "is_of_parameters", "names_between", "parsed_factor"]

# PEFT, its embeddings, torchtune, kohya, diffusers and x-flux: what multiplies first, and its partner.
_PARTNERS = {"A": "B", "a": "b", "down": "up"}
# The word by itself: an "exploration" has layers that go up and down, too.
_STEM = r"(\w*_)?lora(\d+|_\w+)?"
_FIRST = rf"lora_(embedding_)?A|lora_a|lora_down|(?P<stem>{_STEM})\.down"
_SECOND = rf"lora_(embedding_)?B|lora_b|lora_up|{_STEM}\.up"
# LyCORIS, what scales or extends a pair, and the other kinds of adapters: PEFT's words and what comes after them.
_TUNERS = (
    "adamss|beft|boft|c3a|deft|delora|fourierft|frod|glora|gralora|hira|hra|ia3|lily|miss|oft|osf|peanut|poly_lora|psoft|"
    "p?vera|randlora|road|shadow|shira|supertuning(_lora)?|tinylora|trainable_tokens|unilora|vblora|waveft|bone"
)
_PARTS_OF_TUNERS = (
    r"(embedding_)?[ABCPRSUVlrsuv]|[AB]_general|blocks?|theta(_d)?|alpha|diag|spectrum|kernel|weight|values|gamma|bias|"
    r"lambda(_\w+)?|logits_[AB]|vector_bank|router|delta|original|encoders|decoders"
)
_MORE = (
    r"lora_(mid|diag|E|magnitude_vector)|dora_scale|hada_[wt][12](_[ab])?|lokr_(w[12](_[ab])?|t[12])|"
    rf"({_TUNERS})_({_PARTS_OF_TUNERS})|shadow_(up|down)|diff(_b)?(?=$)"
)
# LyCORIS' GLoRA, whose short names say something where all four are there.
_FOUR = ("a1", "a2", "b1", "b2")
# Between the two factors of a pair: without it their product is not the update.
_LENGTHS = "lora_E"
_BETWEEN = (_LENGTHS, "lora_mid", "lora_diag")
_FACTOR = re.compile(
    rf"(?P<module>.*?)(?P<dot>^|[./])(?P<which>(?P<first>{_FIRST})|{_SECOND}|{_MORE})"
    r"(?P<adapter>[./](?!weight$)[^./]+)?(?P<end>[./]weight)?"
)
# PEFT's updates of parameters, not modules: of a stack of experts, and of the second parameter of a module.
_OF_PARAMETERS = re.compile(r"(^|\.)(experts|base_layer)$")


@dataclass(frozen=True, slots=True)
class FactorName:
    """The parts of a factor's name: ``<module><dot><which><adapter><end>``.

    Attributes
    ----------
    module, dot : str
        What is updated; a dot or a slash where that has a name.
    which : str
        The factor: ``lora_A``, ``to_q_lora.down``, ``hada_w1_a``.
    adapter, end : str
        ``.default`` in a live model; ``.weight`` where there is one.
    stem : str
        What both names of a pair begin with where it is not ``lora``: ``to_q_lora``.
    is_first : bool
        Whether it is the factor of a pair that multiplies first.
    """

    module: str
    dot: str
    which: str
    adapter: str
    end: str
    stem: str
    is_first: bool

    @property
    def partner(self) -> str:
        """Name of the second factor of a pair, from that of the first."""
        cut = max(self.which.rfind("_"), self.which.rfind(".")) + 1
        return self.named(self.which[:cut] + _PARTNERS[self.which[cut:]])

    @property
    def product(self) -> str:
        """What the product of a pair is called."""
        stem = self.stem if self.stem not in ("", "lora_linear_layer") else "lora"
        return self.named(stem, end="")

    def named(self, which: str, end: str | None = None) -> str:
        """Name of another tensor of the same update."""
        return f"{self.module}{self.dot}{which}{self.adapter}{self.end if end is None else end}"


def parsed_factor(name: str) -> FactorName | None:
    """Return the parts of the name of a factor; None for any other tensor."""
    found = _FACTOR.fullmatch(name)
    if found is None:
        return None
    return FactorName(
        found["module"],
        found["dot"],
        found["which"],
        found["adapter"] or "",
        found["end"] or "",
        found["stem"] or "",
        found["first"] is not None,
    )


def names_between(factor: FactorName) -> list[str]:
    """The names that a factor between a pair's two would have, from that of one of them."""
    return [factor.named(word, end) for word in _BETWEEN for end in ("", ".weight")]


def is_lengths(info: TensorInfo, factor: FactorName) -> bool:
    """Whether a tensor is what AdaLoRA has between the factors of a pair: a number for each of the ranks, (r, 1)."""
    names = (factor.named(_LENGTHS), factor.named(_LENGTHS, ".weight"))
    return info.name in names and len(info.shape) == 2 and info.shape[1] == 1


def factor_roles(tensors: Iterable[TensorInfo]) -> dict[str, Role]:
    """Return the roles of the tensors that are factors of updates, by name."""
    roles = {}
    infos = {info.name: info for info in tensors}
    for info in infos.values():
        factor = parsed_factor(info.name)
        stem, part = info.name.removesuffix(".weight")[:-3], info.name.removesuffix(".weight")[-3:]
        if part[:1] == "." and part[1:] in _FOUR and all(f"{stem}.{other}.weight" in infos for other in _FOUR):
            reason = f"factor of an update of {stem}: merge it into its base first"
            roles[info.name] = Role("factor", reason=reason, source="names of a pair", of=stem)
        if factor is not None and len(info.shape) >= 2:
            module = factor.module or "the model"
            of_lora = factor.which.startswith(("lora", "dora")) or factor.which.endswith((".down", ".up"))
            kind = "the LoRA update" if of_lora else "an update"
            reason = f"factor of {kind} of {module}{_obstacle(factor, infos)}: merge it into its base first"
            roles[info.name] = Role("factor", reason=reason, source="names of a pair", of=module)
    return roles


def is_of_parameters(factor: FactorName) -> bool:
    """Whether a name is that of an update of parameters, which may be one for each of many experts."""
    return _OF_PARAMETERS.search(factor.module) is not None


def _obstacle(factor: FactorName, infos: dict[str, TensorInfo]) -> str:
    """Say in brackets why factors of these names can be no plain product of two."""
    between = next((name for name in names_between(factor) if name in infos), "")
    if between and not is_lengths(infos[between], factor):
        return f" (with {between} among its factors, it is no product of two)"
    if is_of_parameters(factor):
        return " (of fused experts, perhaps, whose number an adapter_config.json beside it must tell)"
    return ""
