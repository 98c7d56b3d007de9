"""How numbers are written, wherever results are shown."""

from __future__ import annotations

import math

__all__ = ["counted", "percent", "signed", "with_error"]


def counted(count: int, noun: str, plural: str = "") -> str:
    """Write a number and what it counts.

    Examples
    --------
    >>> counted(1, "layer"), counted(1234, "matrix", "matrices")
    ('1 layer', '1,234 matrices')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def percent(share: float | None, digits: int = 1) -> str:
    """Write a share as per cent, ``?`` where it is not known.

    Examples
    --------
    >>> percent(0.1234), percent(0.5, 2), percent(None)
    ('12.3%', '50.00%', '?')
    """
    return "?" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}%"


def signed(value: float, form: str) -> str:
    """Write a difference with its sign; what rounds to zero has a plus, wherever it came from.

    Examples
    --------
    >>> signed(-0.25, ".1%"), signed(-1e-9, ".3f")
    ('-25.0%', '+0.000')
    """
    text = format(value, f"+{form}")
    return text if any(digit in text for digit in "123456789") else text.replace("-", "+")


def with_error(value: float, error: float) -> str:
    """Write a value with one standard error, both to the error's leading digits; exact values to five digits.

    Examples
    --------
    >>> with_error(4.51234, 0.0087), with_error(4.51234, 0.0), with_error(1234.5, 12.0)
    ('4.5123 ±0.0087', '4.5123', '1234 ±12')
    """
    if not error > 0 or not math.isfinite(error) or not math.isfinite(value):
        return f"{value:.5g}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ±{error:.{decimals}f}"
