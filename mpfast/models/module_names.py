"""Regular expressions that match one module of a model, whatever the model is wrapped in.

The names of a checkpoint and those of the live model differ in front: a head puts the body into an attribute
(``encoder.layer.0`` is ``bert.encoder.layer.0`` there), a wrapper adds ``module.``. So a pattern is a suffix that
begins at a dot, without the name of the body where that is the first part of all numbered modules, and it does not
match what merely ends alike: ``0`` is not ``block.0``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

__all__ = ["body_of", "module_patterns"]


def module_patterns(modules: Iterable[str], others: Iterable[str] = ()) -> dict[str, str]:
    r"""Return a pattern for each module, the longest first, to be anchored as ``(.*\.)?PATTERN$``.

    Parameters
    ----------
    modules : iterable of str
        The modules that are meant.
    others : iterable of str
        Further modules of the checkpoint, which no pattern may match.

    Examples
    --------
    >>> module_patterns(["bert.encoder.layer.0.output", "bert.encoder.layer.1.output"])["bert.encoder.layer.1.output"]
    'encoder\\.layer\\.1\\.output'
    >>> module_patterns(["0"], ["block.0"])
    {'0': '(?<!block\\.)0'}
    """
    wanted = list(dict.fromkeys(modules))
    known = list(dict.fromkeys([*wanted, *others]))
    endings = _by_ending(known)
    body = body_of(known)
    patterns = {}
    for name in sorted(wanted, key=lambda name: (-len(name), name)):
        short = name.removeprefix(body)
        if len(endings[short]) > 1:
            short = name
        before = [other.removesuffix(short) for other in endings[short] if other != name]
        patterns[name] = "".join(f"(?<!{re.escape(prefix)})" for prefix in before) + re.escape(short)
    return patterns


def _by_ending(names: Iterable[str]) -> Mapping[str, list[str]]:
    """List the names that end in each of their endings, which begin at a dot."""
    endings: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        for at in range(len(parts)):
            endings.setdefault(".".join(parts[at:]), []).append(name)
    return endings


def body_of(names: Iterable[str]) -> str:
    """Return what a model calls its body, with a dot, or nothing where it has no name.

    That is the first part of all names that have a number in them, where they share one.
    """
    numbered = [parts for parts in (name.split(".") for name in names) if any(part.isdecimal() for part in parts)]
    first = {parts[0] for parts in numbered}
    # What is numbered itself, or is the list of the blocks, is no body; one of two halves is none either.
    numbers = any(part.isdecimal() for parts in numbered for part in parts[:2])
    if len(first) != 1 or numbers or first & {"encoder", "decoder"}:
        return ""
    return f"{first.pop()}."
