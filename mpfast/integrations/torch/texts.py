"""Second moments of a model of transformers from texts."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from mpfast.checkpoints import NameFilter, located
from mpfast.integrations.torch.calibration import SecondMoments
from mpfast.support import InvalidValueError, front_door, package_missing, positive_integer

__all__ = ["text_moments"]

_TOKENS_AT_ONCE = 2048


@front_door
def text_moments(
    model: str | os.PathLike[str],
    texts: Sequence[str],
    *,
    tokens: int = 16384,
    length: int = 256,
    folds: int = 4,
    include: NameFilter | None = None,
    exclude: NameFilter | None = None,
    device: str | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SecondMoments:
    """Run a language model or an encoder of transformers over texts and collect the second moments of its layers.

    The model is built by the class that its configuration names, in float32, so that its modules are called as its
    weights are. Every text is cut into windows of `length` tokens, with the special tokens that the tokenizer adds; if
    there are more windows than are needed, those are taken that lie at even distances. There is no padding. The head of
    a language model is not run.

    Parameters
    ----------
    model : str or path-like
        A directory that `save_pretrained` wrote, or a Hugging Face id in the local cache; nothing is fetched, and no
        code that comes with a model is run.
    texts : sequence of str
        The data: of the kind that the model is to do well on afterwards.
    tokens : int
        About how many tokens are run; all, if there are fewer.
    length : int
        Tokens in a window, special ones included.
    folds, include, exclude, threads
        As in `SecondMoments`.
    device : str, optional
        A device of PyTorch. Default the CPU.
    progress : function, optional
        Called after every batch with the tokens done and the tokens in all.

    Raises
    ------
    ImportError
        There is no transformers.
    OSError
        There is no such model, or a file of it is missing.
    ValueError
        The directory is no model of transformers, the model takes no windows of this length, the texts have no token,
        there is no such device, or no layer is left.

    Warns
    -----
    UserWarning
        Of layers that have seen fewer than 4 inputs per dimension.
    """
    place = _device(device)
    positive_integer(tokens, "tokens", optional=False)
    positive_integer(length, "length", optional=False)
    folder = _model_folder(model)
    network, tokenizer = _loaded(folder, place)
    most = getattr(network.config, "max_position_embeddings", None)
    if isinstance(most, int) and length > most:
        raise InvalidValueError("length", f"is {length}, and the model takes {most} tokens at most")
    windows = _windows(tokenizer, texts, length)
    wanted = _evenly(windows, tokens)
    if not wanted:
        raise InvalidValueError("texts", "have no token")
    total, done = sum(map(len, wanted)), 0
    moments = SecondMoments(network, folds=folds, include=include, exclude=exclude, threads=threads, source=folder)
    # The head is no layer to prune, and for small models a good part of the work.
    body = network if network.get_output_embeddings() is None else network.base_model
    with moments, torch.no_grad():
        for batch in _batches(wanted, length):
            ids = torch.tensor(batch, device=network.device)
            body(input_ids=ids, attention_mask=torch.ones_like(ids))
            done += ids.numel()
            if progress is not None:
                progress(done, total)
    return moments


def _model_folder(model: str | os.PathLike[str]) -> str:
    if importlib.util.find_spec("transformers") is None:
        raise package_missing("measuring moments of texts", "transformers", extra="transformers")
    folder = located(model)
    if not (folder / "config.json").is_file():
        raise InvalidValueError("", f"{folder}: is no directory with a config.json of transformers")
    return str(folder)


def _device(name: str | None) -> torch.device:
    """A device of PyTorch on which there is memory to be had."""
    try:
        device = torch.device("cpu" if name is None else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # what PyTorch raises where it was built without one
        raise InvalidValueError("device", f"is none of this PyTorch: {str(error).splitlines()[0]}") from None
    if device.type == "meta":
        raise InvalidValueError("device", "has no memory to run a model in", "take another one than 'meta'")
    return device


def _loaded(folder: str, device: torch.device) -> tuple[Any, Any]:
    """The model, ready to run, and its tokenizer."""
    import transformers  # late: it takes seconds

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    named = (config.architectures or ["none"])[0]
    builder = getattr(transformers, named, None)
    if builder is None:
        raise InvalidValueError("", f"{folder}: its configuration names the class {named}, which transformers lacks")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError) as error:
        advice = "tokenizer.save_pretrained puts one there"
        raise InvalidValueError("", f"{folder}: transformers finds no tokenizer beside the model", advice) from error
    with _no_bars(transformers.utils.logging):
        network = builder.from_pretrained(folder, local_files_only=True).float().eval()
    network.config.use_cache = False
    return network.to(device), tokenizer


@contextlib.contextmanager
def _no_bars(logging: Any) -> Iterator[None]:
    """Progress bars of transformers are for those who called it."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _windows(tokenizer: Any, texts: Sequence[str], length: int) -> list[list[int]]:
    if not tokenizer.is_fast:
        raise InvalidValueError("", f"{type(tokenizer).__name__} cuts no windows", "convert it to a fast tokenizer")
    special = tokenizer.num_special_tokens_to_add()
    if length <= special:
        raise InvalidValueError("length", f"is {length}, and the tokenizer adds {special} tokens to each window")
    windows = []
    for text in texts:
        # Not cut while it is encoded: tokenizers 0.23.1 and 0.23.2 lose most of what is cut off then.
        (whole,) = tokenizer(text, add_special_tokens=False, verbose=False).encodings
        whole.truncate(length - special)
        cut = (tokenizer.backend_tokenizer.post_process(part) for part in (whole, *whole.overflowing) if part.ids)
        windows += [window.ids for window in cut]
    return windows


def _evenly(windows: list[list[int]], tokens: int) -> list[list[int]]:
    """Windows at even distances that have about so many tokens; full ones before the ends of texts."""
    longest = max(map(len, windows), default=0)
    full = [window for window in windows if len(window) == longest]
    if len(full) * longest >= tokens:
        windows = full
    count = min(len(windows), -(-tokens * len(windows) // max(1, sum(map(len, windows)))))
    return [windows[number * len(windows) // count] for number in range(count)]


def _batches(windows: list[list[int]], length: int) -> Iterator[list[list[int]]]:
    """Neighbours of equal length."""
    most = max(1, _TOKENS_AT_ONCE // length)
    for _, alike in itertools.groupby(windows, len):
        several = list(alike)
        yield from (several[at : at + most] for at in range(0, len(several), most))
