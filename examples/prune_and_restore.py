"""Prune a small network on scikit-learn's digits to 90 %, with fine-tuning.

Needs torch and scikit-learn, and for the picture matplotlib.
"""

import torch
from sklearn.datasets import load_digits

from mpfast.integrations.torch import FineTuning, PruneAndRestore, Selection, hold

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
order = torch.randperm(len(images))
x, y = torch.tensor(images / 8 - 1, dtype=torch.float32)[order], torch.tensor(labels)[order]
train = list(zip(x[:1200].split(50), y[:1200].split(50), strict=True))
model = torch.nn.Sequential(
    torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10)
)


def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


def accuracy(model):
    with torch.no_grad():
        return float((model(x[1200:]).argmax(dim=1) == y[1200:]).float().mean())


optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for _ in range(30):
    for batch in train:
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
dense = accuracy(model)
print(f"dense: accuracy {dense:.3f}")

job = PruneAndRestore(
    model,
    train,
    loss,
    selection=Selection(batches=24),
    fine_tuning=FineTuning(lr=0.02, epochs=3),
    evaluate=accuracy,
)
steps = []
for step in job.run([0.2, 0.4, 0.6, 0.8, 0.9], magnitude_until=0.4):
    steps.append(step)
    print(f"{step.method} to {step.sparsity:.2f}: {step.restored} restored, accuracy {step.score:.3f}")

hold(model, job.masks)  # from here on any training keeps the zeros

try:
    import matplotlib
except ImportError:
    raise SystemExit("no picture without matplotlib: pip install matplotlib") from None
matplotlib.use("Agg")
import matplotlib.pyplot as plt

fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4), layout="constrained")
left.axhline(100 * dense, color="0.4", lw=0.8, ls=":", label="dense")
left.plot(
    [100 * step.sparsity for step in steps], [100 * step.score for step in steps], "-", color="0.7", lw=1, zorder=0
)
for method, color in (("magnitude", "C0"), ("restore", "C1")):
    chosen = [step for step in steps if step.method == method]
    left.plot(
        [100 * s.sparsity for s in chosen], [100 * s.score for s in chosen], "o", color=color, label=f"{method} step"
    )
left.set(
    title="Digits, after each step", xlabel="sparsity (%)", ylabel="accuracy on 597 held-out digits (%)", ylim=(90, 100)
)
left.legend(frameon=False, loc="lower left")
kept = {name: 100 * float(mask.float().mean()) for name, mask in job.masks.items()}
labels = [f"{name.removesuffix('.weight')}: {mask.shape[1]} to {mask.shape[0]}" for name, mask in job.masks.items()]
bars = right.barh(labels, list(kept.values()), color="C2", height=0.55)
right.bar_label(bars, fmt="%.1f", padding=3)
right.invert_yaxis()
right.set(
    title="What is left in the end", xlabel="weights kept (%)", ylabel="layer", xlim=(0, 1.15 * max(kept.values()))
)
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
fig.savefig("prune_and_restore.png", dpi=110)
print("prune_and_restore.png")
