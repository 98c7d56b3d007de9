"""What the spectrum of a layer says about its noise: four levels, and a sentence for each."""

from __future__ import annotations

from mpfast.spectra import Spectrum

__all__ = [
    "EQUAL",
    "EQUAL_SENTENCE",
    "LEVELS",
    "VERDICTS",
    "WHAT_IS_NORMAL",
    "noise_sentence",
    "noise_verdict",
]

#: From a bulk that is even noise to one that is no noise of any row and column scales.
LEVELS = ("even", "uneven", "nearly", "none")
#: In the place of a verdict: there is no difference to the base, and so nothing that was fitted.
EQUAL, EQUAL_SENTENCE = "equal", "Equal to the base."
#: Verdicts of a layer, from even noise to none; and "equal", of a difference to a base that is zero.
VERDICTS = (*LEVELS, EQUAL)
#: What is normal; for whoever reads a table.
WHAT_IS_NORMAL = (
    "Most trained layers have no noise bulk, and that is no fault of theirs: compare layers of one kind, or "
    "checkpoints of one model, by signals, share and effective rank."
)


def noise_verdict(told: Spectrum) -> str:
    """Level of a spectrum that was measured with ``noise="auto"``, one of `LEVELS`."""
    fit = told.edge.verdict  # "poor" also where the scales have not settled
    if fit != "good":
        return "nearly" if fit == "fair" else "none"
    return "uneven" if told.noise is not None and told.noise.scaled else "even"


def noise_sentence(told: Spectrum, even_spikes: int) -> str:
    """Say what the level means for this spectrum; ``even_spikes`` is what the fit of even noise counts."""
    fit, noise = told.edge, told.noise
    low, high = min(fit.strict, fit.spikes), fit.spikes
    between = f"between {low} and {high} directions stand out" if low < high else f"{_directions(high)} out"
    level = noise_verdict(told)
    if level == "even":
        unknown = "; nobody has seen whether rows or columns differ" if noise is None else ""
        return f"Even noise and {_signals(high)}{unknown}."
    if level == "uneven" and noise is not None:
        rows, columns = (f"±{100 * spread:.0f} %" for spread in (noise.row_spread, noise.col_spread))
        return (
            f"Noise of uneven scale (rows {rows}, columns {columns}) and {_signals(high)}. The fit of even noise would "
            f"say {even_spikes}."
        )
    if level == "nearly":
        return f"Nearly noise: {between}."
    if fit.sigma_plus <= told.rounding:
        return f"No noise at all: of rank {fit.spikes_above_edge} but for rounding."
    return (
        f"No noise bulk. {between.capitalize()} of independent entries of these scales; the rest is not independent "
        "noise either, and cutting at the edge removes function."
    )


def _directions(count: int) -> str:
    return "1 direction stands" if count == 1 else f"{count or 'no'} directions stand"


def _signals(count: int) -> str:
    return f"{count} signal" if count == 1 else f"{count} signals"
