"""Which modules of a model get an adapter: those whose spectra are flattest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from mpfast.models import Analysis, LayerReport
from mpfast.support import InvalidTypeError, InvalidValueError, check_sparsity, front_door

__all__ = ["target_modules"]


@front_door
def target_modules(analysis: Analysis, top_p: float = 0.2) -> dict[str, list[str] | None]:
    """Return what PEFT's ``find_kappa_target_modules`` does, by effective ranks in place of condition numbers.

    That function takes the layers whose condition number ``s_1 / s_n`` is lowest: whose spectra are flat, so that no
    direction is much more important than another. A condition number needs the smallest singular value, which block
    Lanczos quadrature does not give. The effective rank, the exponential of the entropy of the energies of the singular
    directions, comes with any analysis; divided by the smaller side of the matrix it says the same of the whole
    spectrum that the condition number says of its ends, and is 1 where all singular values are equal, as that is. The
    two orders agree where spectra differ in one way only, and not in general.

    Parameters
    ----------
    analysis : Analysis
        Of the model that is to be tuned, or of its files where these have the names of its modules. Linear layers and
        stacks of experts are looked at; embeddings and the output heads of language models are not.
    top_p : float
        Share of the modules, and of the stacks, that is chosen; rounded down, but one at least.

    Returns
    -------
    dict
        ``target_modules``, names of modules, and ``target_parameters``, names of stacks of experts, or None where there
        are none; the flattest first: ``LoraConfig(**target_modules(analysis))``. A stack has the mean of its experts,
        and a fused projection that of its parts.

    Raises
    ------
    TypeError
        `analysis` is no Analysis.
    ValueError
        `top_p` is no number in (0, 1]; no layer has an effective rank; or PEFT, which goes by the ends of names, would
        take a module that was not chosen for one that was.

    References
    ----------
    KappaTune, as PEFT has it: https://github.com/huggingface/peft/pull/3106.
    """
    if not isinstance(analysis, Analysis):
        advice = "mpfast.analyze(model) makes one"
        raise InvalidTypeError("analysis", f"must be an Analysis, not {type(analysis).__name__}", advice)
    if check_sparsity(top_p, "top_p") == 0:
        raise InvalidValueError("top_p", "must lie in (0, 1], not 0")
    flatness: dict[str, list[float]] = {}
    stacks = set()
    for row in analysis:
        if _is_stack(row):
            stacks.add(row.tensor)
        elif row.kind != "linear" or len(row.tensor_shape) != 2 or not row.tensor.endswith(".weight"):
            continue
        if math.isfinite(row.effective_rank):  # that of a matrix of zeros is not
            flatness.setdefault(row.tensor, []).append(row.effective_rank / min(row.shape))
    if not flatness:
        raise InvalidValueError("analysis", "has no linear layer and no stack of experts that PEFT could adapt")
    means = {name: fmean(values) for name, values in flatness.items()}
    parameters = _flattest({name: mean for name, mean in means.items() if name in stacks}, top_p)
    modules = {name.removesuffix(".weight"): mean for name, mean in means.items() if name not in stacks}
    chosen = _flattest(modules, top_p)
    _check_endings(chosen, modules, analysis)
    return {"target_modules": chosen, "target_parameters": parameters or None}


def _is_stack(row: LayerReport) -> bool:
    return row.kind == "experts" and len(row.tensor_shape) == 3


def _flattest(means: Mapping[str, float], top_p: float) -> list[str]:
    count = max(1, int(len(means) * top_p)) if means else 0
    return sorted(means, key=lambda name: -means[name])[:count]


def _check_endings(chosen: list[str], modules: Mapping[str, float], analysis: Analysis) -> None:
    """PEFT takes every module whose name ends in that of a chosen one, too."""
    taken = set(chosen)
    others = [name for name in modules if name not in taken]
    others += [tensor.name.removesuffix(".weight") for tensor in analysis.skipped if len(tensor.shape) == 2]
    for other in others:
        parts = other.split(".")
        name = next((end for at in range(1, len(parts)) if (end := ".".join(parts[at:])) in taken), None)
        if name is not None:
            raise InvalidValueError(
                "analysis",
                f"PEFT would take {other}, which is not chosen, for {name}, which is",
                "name the modules by a regular expression of your own",
            )
