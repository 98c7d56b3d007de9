"""What the tests of HTML pages share."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

HOSTILE = "head </script><img src=x onerror=alert()>&\"'\u202e.weight"


def page_data(page: str) -> dict[str, Any]:
    """What a page holds for its scripts."""
    return dict(json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]))


def deep_model(blocks: int = 12) -> dict[str, NDArray[np.float64]]:
    """A model of blocks with a growing number of signals, a head with a name that could harm, and a bias."""
    rng = np.random.default_rng(0)
    model = {}
    for block in range(blocks):
        for part, shape in (("attn.q", (48, 64)), ("attn.k", (32, 64)), ("mlp.up", (96, 64))):
            signals = rng.standard_normal((shape[0], block)) @ rng.standard_normal((block, shape[1]))
            model[f"model.blocks.{block}.{part}.weight"] = rng.standard_normal(shape) + signals / 4
    model[HOSTILE] = rng.standard_normal((32, 64))
    model["=sum().weight"] = rng.standard_normal((32, 64))  # from which spreadsheets would compute
    model["model.norm.bias"] = np.zeros(3)
    return model
