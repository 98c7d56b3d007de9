"""Bad input to the PyTorch integration: which function and which argument an error names, and who warns."""

from __future__ import annotations

import numpy as np
import pytest

from mpfast import ConvergenceWarning
from mpfast.support import InputError

torch = pytest.importorskip("torch")
integration = pytest.importorskip("mpfast.integrations.torch")


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.ReLU(), torch.nn.Linear(30, 5))


def steps(**options):
    return integration.PruneAndRestore(model(), [], None, **options)


BAD_CALLS = [
    (lambda: integration.SecondMoments(model(), share=2), ValueError, "SecondMoments", "share"),
    (lambda: integration.SecondMoments(model(), include=3 * [1]), TypeError, "SecondMoments", "include"),
    (lambda: integration.prunable_modules(model(), [1]), TypeError, "prunable_modules", "include"),
    (lambda: integration.split(torch.nn.ReLU()), TypeError, "split", ""),
    (lambda: integration.split(torch.nn.Linear(30, 40), 0), ValueError, "split", "rank"),
    (lambda: integration.split_modules(model(), shrinkage="l1"), ValueError, "split_modules", "shrinkage"),
    (lambda: integration.hold(model(), {"1.bias": torch.ones(3)}), KeyError, "hold", "model"),
    (lambda: integration.hold(model(), {"0.weight": torch.ones(3)}), ValueError, "hold", "the mask of 0.weight"),
    (lambda: integration.to_semi_structured(model()), ValueError, "to_semi_structured", ""),
    (lambda: integration.global_prune([], 0.5, "random"), ValueError, "global_prune", "method"),
    (lambda: integration.SpectralSparsifier(2.0), ValueError, "SpectralSparsifier", "sparsity"),
    (lambda: integration.certify(model(), {}, [], order="up"), ValueError, "certify", "order"),
    (lambda: integration.certify(model(), {}, []), ValueError, "certify", ""),
    (lambda: steps(reservoir="old"), ValueError, "PruneAndRestore", "reservoir"),
    # At once, and not only when the first step is asked for.
    (lambda: steps().run([0.5], drop=0.1), ValueError, "PruneAndRestore.run", "drop"),
    (lambda: steps().prune_to({}), ValueError, "PruneAndRestore.prune_to", "the mask of 0.weight"),
    (lambda: steps().magnitude_step(2.0), ValueError, "PruneAndRestore.magnitude_step", "sparsity"),
]


@pytest.mark.parametrize(("call", "kind", "function", "argument"), BAD_CALLS)
def test_an_error_is_a_value(call, kind, function, argument):
    with pytest.raises(kind) as caught:
        call()
    assert isinstance(caught.value, InputError)
    assert (caught.value.function, caught.value.argument) == (function, argument)
    assert str(caught.value).count("(): ") == 1


def test_a_module_that_was_not_split_says_why():
    layer = torch.nn.Linear(40, 30)
    with torch.no_grad():
        layer.weight[3, 5] = float("nan")
    _, report = integration.split_modules(torch.nn.Sequential(layer, torch.nn.Conv2d(4, 40, 3, groups=2)), 2)
    assert report["0"].startswith("has 1 non-finite entry (NaN or inf), the first at (3, 5); clean it first")
    assert report["1"] == "the groups of a convolution have weights of their own"


@pytest.mark.parametrize("name", ["split", "split_modules"])
def test_triplets_that_are_missing_are_warned_of_once(name):
    layer = torch.nn.Linear(400, 300)
    W = np.random.default_rng(0).standard_normal((300, 400))
    W[:, :3] *= 6
    layer.double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(W + 1e8))
    with pytest.warns(ConvergenceWarning, match="3 singular values above the edge") as caught:
        getattr(integration, name)(layer)
    assert len(caught) == 1
    assert str(caught[0].message).startswith(f"{name}(): ")
    assert caught[0].filename == __file__
