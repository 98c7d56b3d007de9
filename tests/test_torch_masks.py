"""Masks on live PyTorch models."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mpfast import masks  # noqa: E402
from mpfast.integrations.torch import (  # noqa: E402
    GivenMask,
    NOfM,
    NoiseFloor,
    SpectralSparsifier,
    global_prune,
    hold,
    layer_by_layer,
    masks_of,
    release,
    to_semi_structured,
)


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.dim() == 2}


def test_held_masks_survive_training_and_saving() -> None:
    model = small_model()
    found = masks.magnitude(weights_of(model), 0.5)
    hold(model, found)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    x, y = torch.randn(64, 16), torch.randn(64, 8)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    for name, mask in found.items():
        assert (model.get_submodule(name.split(".")[0]).weight[~mask] == 0).all()
    assert set(masks_of(model)) == set(found)
    # A fresh model with any masks takes the saved ones.
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    other = hold(small_model(), {name: torch.ones_like(mask) for name, mask in found.items()})
    other.load_state_dict(torch.load(stream, weights_only=True))
    torch.testing.assert_close(other(x), model(x))
    for name, mask in masks_of(other).items():
        assert torch.equal(mask, found[name])
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(x), model(x))


def test_release() -> None:
    model = small_model()
    dense = {name: p.detach().clone() for name, p in weights_of(model).items()}
    found = masks.magnitude(dense, 0.5)
    hold(model, found)
    release(model)
    assert set(model.state_dict()) == set(small_model().state_dict())
    for name, weight in weights_of(model).items():
        assert torch.equal(weight, dense[name] * found[name])
    hold(release(small_model()), found)
    back = release(hold(small_model(), found), restore=True)
    for name, weight in weights_of(back).items():
        assert torch.equal(weight, dense[name])


def test_masks_are_replaced_and_named_by_module() -> None:
    model = small_model()
    first = masks.magnitude(weights_of(model), 0.2)
    second = masks.magnitude(weights_of(model), 0.7)
    hold(model, first)
    hold(model, {name.removesuffix(".weight"): mask.numpy() for name, mask in second.items()})
    for name, mask in masks_of(model).items():
        assert torch.equal(mask, second[name])


def test_compiled_models_see_the_masks() -> None:
    model = small_model()
    hold(model, masks.magnitude(weights_of(model), 0.9))
    x = torch.randn(4, 16)
    # Without a compiler on the machine: tracing and graph breaks are what is tested.
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    hold(model, {"0.weight": torch.zeros(32, 16, dtype=torch.bool)})
    torch.testing.assert_close(compiled(x), model(x))


def test_hold_errors_leave_the_model_alone() -> None:
    model = small_model()
    good = torch.ones(32, 16, dtype=torch.bool)
    with pytest.raises(KeyError, match=r"no parameter '7\.weight'"):
        hold(model, {"0.weight": good, "7.weight": good})
    with pytest.raises(ValueError, match="boolean of shape"):
        hold(model, {"0.weight": good, "2.weight": good})
    with pytest.raises(ValueError, match="boolean of shape"):
        hold(model, {"0.weight": good.float()})
    assert masks_of(model) == {}


def test_torch_prune_methods() -> None:
    model = small_model()
    dense = model[0].weight.detach().clone()
    NOfM.apply(model[0], "weight", 2, 4)
    assert torch.equal(model[0].weight_mask.bool(), masks.n_m(dense, 2, 4))
    torch.nn.utils.prune.l1_unstructured(model[0], "weight", amount=100)  # the methods stack
    assert int((model[0].weight_mask == 0).sum()) == 256 + 100
    torch.nn.utils.prune.remove(model[0], "weight")
    assert int((model[0].weight == 0).sum()) == 356
    big = torch.nn.Linear(300, 200)
    with torch.no_grad():
        big.weight.normal_()
        big.weight[3, 5] = 50
    NoiseFloor.apply(big, "weight", 0.01)
    assert big.weight_mask.nonzero().tolist() == [[3, 5]]
    GivenMask.apply(model[2], "weight", torch.zeros(8, 32, dtype=torch.bool))
    assert not model[2].weight.any()
    rng = np.random.default_rng(0)
    X = rng.standard_normal((100, 32)) @ rng.standard_normal((32, 32))
    moment = X.T @ X / 100
    fresh = small_model()
    wanted = masks.n_m(fresh[2].weight.detach(), 4, 8, second_moment=moment)
    NOfM.apply(fresh[2], "weight", 4, 8, second_moment=moment)
    assert torch.equal(fresh[2].weight_mask.bool(), wanted)


@pytest.mark.parametrize(("method", "options"), [("spectral_budget", {}), ("magnitude", {"scope": "row"})])
@pytest.mark.parametrize("amounts", [(0.3, 0.5), (100, 0.5), (0.25, 31)])
def test_a_class_for_what_shows_no_layers(method: str, options: dict[str, str], amounts: tuple[float, float]) -> None:
    """PyTorch's own global pruning, twice, each time of what is left; as our functions have it, layer by layer."""
    model = small_model()
    parameters = [(model[0], "weight"), (model[2], "weight")]
    wanted = {str(number): module.weight.detach().clone() for number, (module, _) in enumerate(parameters)}
    kept = {number: torch.ones_like(weight, dtype=torch.bool) for number, weight in wanted.items()}
    size, cut = 512 + 256, 0
    for amount in amounts:
        torch.nn.utils.prune.global_unstructured(
            parameters, layer_by_layer(parameters, method, **options), amount=amount
        )
        gone = cut + (round(amount * (size - cut)) if isinstance(amount, float) else amount)
        function = getattr(masks, method)
        kept = function(wanted, (gone + 0.5) / size, within=kept, **options)
        wanted = {number: weight * kept[number] for number, weight in wanted.items()}
        cut = sum(int((~mask).sum()) for mask in kept.values())
        assert gone - len(kept) < cut <= gone if options else cut == gone  # of each layer by itself, rounded down
        for number, (module, _) in enumerate(parameters):
            assert torch.equal(module.weight_mask.bool(), kept[str(number)])


def test_a_class_for_other_parameters_is_refused() -> None:
    model = small_model()
    parameters = [(model[0], "weight"), (model[2], "weight")]
    made = layer_by_layer(parameters)
    for others in (parameters[:1], parameters[::-1]):
        with pytest.raises(ValueError, match="not those that the class was made for"):
            torch.nn.utils.prune.global_unstructured(others, made, amount=0.5)
    for amount in (1.5, 10**6, -1, True):
        with pytest.raises(ValueError, match="share from 0 to 1 or a number of the 768"):
            torch.nn.utils.prune.global_unstructured(parameters, made, amount=amount)
    with pytest.raises(ValueError, match="method must be"):
        layer_by_layer(parameters, "random")


def test_lightnings_model_pruning_takes_it() -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")

    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_model()

        def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    model = Model()
    parameters = [(model.net[0], "weight"), (model.net[2], "weight")]
    pruning = callbacks.ModelPruning(
        layer_by_layer(parameters, scope="row"),
        parameters_to_prune=parameters,
        amount=0.5,
        use_lottery_ticket_hypothesis=False,
    )
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(16, 16)), batch_size=8)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "barebones": False}
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", callbacks=[pruning], **quiet)
    trainer.fit(model, data)
    # Half of the rows of 16 and of 32, and half of what was left; PyTorch's zeros are permanent by now.
    assert [set((module.weight != 0).sum(dim=1).tolist()) for module, _ in parameters] == [{4}, {8}]


@pytest.mark.parametrize("method", ["spectral_budget", "magnitude"])
def test_global_prune(method: str) -> None:
    model = small_model()
    dense = [module.weight.detach().clone() for module in (model[0], model[2])]
    global_prune([(model[0], "weight"), (model[2], "weight")], 0.6, method)
    gone = sum(int((module.weight == 0).sum()) for module in (model[0], model[2]))
    assert gone == math.floor(0.6 * (512 + 256))
    if method == "magnitude":
        wanted = masks.magnitude({"0": dense[0], "1": dense[1]}, 0.6)
        assert torch.equal(model[0].weight_mask.bool(), wanted["0"])
    with pytest.raises(ValueError, match="method must be"):
        global_prune([(model[0], "weight")], 0.5, "random")


def test_sparsifier() -> None:
    model = small_model()
    wanted = masks.spectral_budget({"0.weight": model[0].weight.detach(), "2.weight": model[2].weight.detach()}, 0.5)
    sparsifier = SpectralSparsifier(0.5)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight"}])
    sparsifier.step()
    assert torch.equal(model[0].weight != 0, wanted["0.weight"])
    sparsifier.sparsity = 0.8
    sparsifier.step()
    sparsifier.squash_mask()
    gone = sum(int((module.weight == 0).sum()) for module in (model[0], model[2]))
    assert gone == math.floor(0.8 * 768)
    assert set(model.state_dict()) == set(small_model().state_dict())


def test_semi_structured_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="2 of every 4"):
        to_semi_structured(small_model())
    if torch.cuda.is_available():
        pytest.skip("this checks the message without a GPU")
    model = small_model()
    hold(model, {"0.weight": masks.n_m(model[0].weight.detach(), 2, 4)})
    with pytest.raises(RuntimeError):
        to_semi_structured(model)


def test_what_a_pattern_keeps_fits_pytorchs_layout() -> None:
    """What the kernels of a GPU read: half of the weights, and two bits for the place of each; that much runs here."""
    conversions = pytest.importorskip("torch.sparse._semi_structured_conversions")
    weight = torch.randn(64, 128).half()
    pruned = weight * masks.n_m(weight, 2, 4)
    values, places = conversions.sparse_semi_structured_from_dense_cutlass(pruned)
    assert torch.equal(conversions.sparse_semi_structured_to_dense_cutlass(values, places), pruned)
    assert values.nbytes + places.nbytes == (1 / 2 + 1 / 16) * pruned.nbytes


@pytest.mark.gpu
def test_semi_structured_computes_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    model = torch.nn.Sequential(torch.nn.Linear(256, 256)).cuda().half()
    hold(model, {"0.weight": masks.n_m(model[0].weight.detach().cpu(), 2, 4)})
    x = torch.randn(64, 256, device="cuda", dtype=torch.half)
    want = model(x)
    torch.testing.assert_close(to_semi_structured(model)(x), want, rtol=1e-2, atol=1e-2)
