"""Exceptions and warnings of the package.

An error of input is a value: the argument, what is wrong with it and what to do are fields. Whoever finds the fault
raises it without knowing whom the user called; the public function adds its own name as the error leaves it.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ParamSpec, TypeVar

__all__ = [
    "CheckpointError",
    "ConvergenceWarning",
    "InputError",
    "InvalidTypeError",
    "InvalidValueError",
    "MissingKeyError",
    "OutOfMemoryError",
    "UnreadableArrayError",
    "argument_called",
    "front_door",
    "matrix_called",
    "package_missing",
    "summary_of_unmet",
    "warn_caller",
]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_PACKAGE = str(Path(__file__).parents[1] / "_")[:-1]  # with the separator at its end


class InputError(Exception):
    """What the caller handed in cannot be used; always raised as one of the kinds below.

    Attributes
    ----------
    argument
        Name of the argument, perhaps a part of it (``"weights['fc']"``) or with its value (``"include='fc.*'"``); empty
        where several do not go together.
    fact
        What is wrong with it, or must hold for it.
    advice
        What to do about it; empty where the fact says it.
    function
        The public function that was called; empty until the error has left it.
    """

    def __init__(self, argument: str, fact: str, advice: str = "") -> None:
        super().__init__(argument, fact, advice)
        self.argument = argument
        self.fact = fact
        self.advice = advice
        self.function = ""

    @property
    def reason(self) -> str:
        """The fact and the advice, without the argument's name."""
        return f"{self.fact}; {self.advice}" if self.advice else self.fact

    @property
    def message(self) -> str:
        """The argument's name, the fact and the advice, without the function's name."""
        return f"{self.argument} {self.reason}" if self.argument else self.reason

    def __str__(self) -> str:
        return f"{self.function}(): {self.message}" if self.function else self.message


class InvalidValueError(InputError, ValueError):
    """An argument has a value that it cannot have."""


class InvalidTypeError(InputError, TypeError):
    """An argument is of a type that it cannot be of."""


class UnreadableArrayError(InvalidTypeError):
    """An object that passes for an array raised something when its entries were asked for: the cause of this error."""


class MissingKeyError(InputError, KeyError):
    """A mapping lacks an entry that it must have."""


class OutOfMemoryError(InputError, MemoryError):
    """An argument is too large for what was asked."""


class CheckpointError(ValueError):
    """A checkpoint is malformed or truncated.

    Attributes
    ----------
    tensor
        Name of the tensor concerned, or None.
    offset
        Byte offset in the file where the trouble is, or None.
    """

    def __init__(self, message: str, *, tensor: str | None = None, offset: int | None = None) -> None:
        super().__init__(message)
        self.tensor = tensor
        self.offset = offset


def package_missing(what: str, *packages: str, extra: str = "") -> ImportError:
    """Return the error for what needs packages that are not installed.

    Parameters
    ----------
    what
        What needs them, in the singular.
    packages
        Their names in the package index.
    extra
        Of mpfast, that asks for all of them; empty where none does.
    """
    noun = "package" if len(packages) == 1 else "packages"
    said = f' (extra "{extra}")' if extra else ""
    return ImportError(f"{what} needs the {noun} {' and '.join(packages)}{said}")


class ConvergenceWarning(UserWarning):
    """A tolerance was not met within the budget; the message says what was reached."""


@contextlib.contextmanager
def argument_called(name: str, within: str = "model") -> Iterator[None]:
    """Let errors about the argument `within` of an inner function bear the name that the caller knows it by."""
    try:
        yield
    except InputError as error:
        if error.argument == within:
            error.argument = name
            # Where the advice is code: the word may be one of the sentence, too.
            error.advice = re.sub(rf"\b{re.escape(within)}(?=[.)])", lambda _: name, error.advice)
        raise


@contextlib.contextmanager
def matrix_called(name: str) -> Iterator[None]:
    """Let errors of input about one matrix of several, W for who looks at it, bear the name that the caller knows."""
    try:
        yield
    except InputError as error:
        argument = name if error.argument == "W" else f"{name}: {error.argument}".rstrip()
        raise type(error)(argument, error.fact, error.advice) from error


def front_door(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let errors of input name the decorated public function, or the outermost one where such functions are nested.

    A constructor bears the name of its class. A generator function is no front door: it has returned before it fails.
    """
    name = function.__qualname__.removesuffix(".__init__").removesuffix(".__post_init__")

    @functools.wraps(function)
    def named(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except InputError as error:
            error.function = name
            raise

    return named


def warn_caller(function: str, text: str, category: type[Warning] = UserWarning) -> None:
    """Warn whoever called the public `function` of what did not go well; nothing where the text is empty.

    Without a name the text stands alone: what is said of a file, whoever came upon it.

    The warning points at the line that called into the package, however many front doors lie between.
    """
    if not text:
        return
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"{function}(): {text}" if function else text, category, stacklevel=level)


def summary_of_unmet(unmet: Mapping[str, str], what: str = "meet tol") -> str:
    """Say for one warning what was not met, given it by layer; empty where every text is."""
    texts = {name: text for name, text in unmet.items() if text}
    if not texts:
        return ""
    name, text = next(iter(texts.items()))
    return f"{len(texts)} layers did not {what}, among them {name}: {text}"
