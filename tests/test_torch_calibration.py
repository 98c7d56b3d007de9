"""Second moments collected from running PyTorch models."""

from __future__ import annotations

import itertools
import json
import struct
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mpfast.checkpoints import MomentFile  # noqa: E402
from mpfast.integrations.torch import row_sums  # noqa: E402
from mpfast.integrations.torch.calibration import SecondMoments  # noqa: E402
from mpfast.integrations.torch.layers import input_rows, prunable_modules, watchable_modules  # noqa: E402
from mpfast.masks.projection import output_error, project  # noqa: E402

from .references import run_python  # noqa: E402


def moment_of(rows: Any) -> Any:
    return rows.double().T @ rows.double() / len(rows)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"padding": 1},
        {"padding": "same"},
        {"dilation": 2, "padding": (1, 2)},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)
@pytest.mark.parametrize("size", [9, 150])
def test_rows_of_a_convolution(options: dict[str, Any], size: int) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 5, (3, 2), **options).double()
    x = torch.randn(3, 3, size, size, dtype=torch.float64)
    rows = torch.cat(list(input_rows(conv, x)))
    products = rows @ conv.weight.detach().reshape(5, -1).T + conv.bias.detach()
    want = conv(x).detach().permute(0, 2, 3, 1).reshape(-1, 5)
    assert rows.shape[0] == want.shape[0]
    # Rows come in slabs of images, not in the order of the output.
    order = lambda values: values[np.lexsort(values.numpy().round(9).T)]  # noqa: E731
    torch.testing.assert_close(order(products), order(want))


def test_linear_full_and_blocks() -> None:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    batches = [torch.randn(7, 5, 12), torch.randn(9000, 12), torch.randn(12)]
    with SecondMoments(model) as full, SecondMoments(model, block=4) as blocks:
        for batch in batches:
            model(batch)
    model(torch.randn(3, 12))  # after the end nothing is counted
    rows = torch.cat([batch.reshape(-1, 12) for batch in batches])
    assert full.rows == blocks.rows == {"0": 9036, "2": 9036}
    torch.testing.assert_close(full["0"], moment_of(rows), rtol=1e-5, atol=1e-6)
    hidden = torch.relu(model[0](rows)).detach()
    torch.testing.assert_close(full["2"], moment_of(hidden), rtol=1e-5, atol=1e-6)
    for g in range(3):
        part = slice(4 * g, 4 * g + 4)
        torch.testing.assert_close(blocks["0"][g], full["0"][part, part], rtol=1e-6, atol=1e-7)
    assert list(full) == ["0", "2"]
    weight = model[0].weight
    assert project(weight, 2, 4, blocks["0"]).cost == pytest.approx(project(weight, 2, 4, full["0"]).cost, rel=1e-6)


@pytest.mark.parametrize("layout", ["flat", "channel"])
def test_convolution_blocks(layout: str) -> None:
    torch.manual_seed(2)
    conv = torch.nn.Conv2d(8, 6, 3, padding=1)
    x = torch.randn(4, 8, 10, 10)
    model = torch.nn.Sequential(conv)
    with SecondMoments(model) as full, SecondMoments(model, block=4, layout=layout) as blocks:
        model(x)
    assert full.rows["0"] == 400
    unfolded = torch.nn.functional.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 72)
    torch.testing.assert_close(full["0"], moment_of(unfolded), rtol=1e-5, atol=1e-6)
    by_blocks = project(conv.weight, 2, 4, blocks["0"], layout=layout)
    by_full = project(conv.weight, 2, 4, full["0"], layout=layout)
    assert torch.equal(by_blocks.mask, by_full.mask)
    changed = torch.nn.functional.conv2d(x, conv.weight * ~by_full.mask, padding=1)
    want = float((changed**2).sum(dim=1).mean())
    assert output_error(conv.weight, by_full.mask, full["0"]) == pytest.approx(want, rel=1e-4)


def test_interrupted_runs_go_on(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    batches = [torch.randn(50, 8) for _ in range(6)]
    whole = SecondMoments(model, block=2, share=0.4, seed=7)
    with whole:
        for batch in batches:
            model(batch)
    file = tmp_path / "moments.safetensors"
    first = SecondMoments(model, block=2, share=0.4, seed=7)
    with first:
        for batch in batches[:3]:
            model(batch)
    first.save(file)
    second = SecondMoments(model, block=2, share=0.4, seed=7)
    second.load(file)
    with second:
        for batch in batches[3:]:
            model(batch)
    assert second.rows == whole.rows
    assert 60 < whole.rows["0"] < 180
    for name in whole:
        torch.testing.assert_close(second[name], whole[name], rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="collected with"):
        SecondMoments(model, block=4, share=0.4, seed=7).load(file)
    with pytest.raises(ValueError, match="no module"):
        SecondMoments(torch.nn.Sequential(torch.nn.Linear(8, 8)), block=2, share=0.4, seed=7).load(file)


def test_padding_is_left_out() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    x = torch.randn(2, 12, 4)
    valid = torch.arange(12) < torch.tensor([[10], [6]])
    with SecondMoments(model) as moments:
        moments.valid = valid
        model(x)
    assert moments.rows["0"] == 16
    torch.testing.assert_close(moments["0"], moment_of(x[valid]), rtol=1e-5, atol=1e-6)


def test_modules_called_by_keyword() -> None:
    layer = torch.nn.Linear(4, 4)
    x = torch.randn(20, 4)
    with SecondMoments(layer) as moments:
        layer(input=x)
    assert moments.rows == {"": 20}
    torch.testing.assert_close(moments[""], moment_of(x), rtol=1e-5, atol=1e-6)


def test_narrow_types_and_shared_modules() -> None:
    shared = torch.nn.Linear(4, 4).to(torch.bfloat16)
    model = torch.nn.Sequential(shared, shared)
    with SecondMoments(model) as moments:
        model(torch.randn(20, 4, dtype=torch.bfloat16))
    assert moments.rows == {"0": 40}
    assert moments["0"].dtype == torch.float64


def test_what_is_left_out_says_why() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=2), torch.nn.Linear(6, 2), torch.nn.Linear(8, 2))
    moments = SecondMoments(model, block=4)
    assert set(moments.skipped) == {"0", "1"}
    assert "grouped" in moments.skipped["0"]
    assert "cannot be cut" in moments.skipped["1"]
    assert list(prunable_modules(model, exclude="2")) == ["0", "1"]
    with pytest.raises(ValueError, match="no module to watch"):
        SecondMoments(torch.nn.Sequential(torch.nn.ReLU()))
    with pytest.raises(ValueError, match="share"):
        SecondMoments(model, share=0)
    with pytest.raises(ValueError, match="block"):
        SecondMoments(model, block=0)
    with pytest.raises(ValueError, match="layout"):
        SecondMoments(model, layout="rows")


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("format", "mpfast-second-moments", "no second moments"),
        ("sums", "", "sums in its metadata is damaged"),
        ("sums", "[" * 20_000, "nested too deeply"),
        ("sums", "{}", "sums in its metadata must be of another form"),
        ("sums", '[{"modules": ["0"], "rows": [-3], "calls": 1}]', "rows must be a list of positive integers"),
        ("sums", '[{"modules": ["0"], "rows": [], "calls": 1}]', "rows must be a list of positive integers"),
        ("sums", '[{"modules": ["0"], "calls": 1}]', "lacks the field 'rows'"),
        ("sums", '[{"modules": [], "rows": [9], "calls": 1}]', "modules must be a list of names"),
        ("sums", '[{"modules": ["0", "0"], "rows": [9], "calls": 1}]', "two sums"),
        ("sums", '[{"modules": ["0"], "rows": [9, 9], "calls": 1}]', "lacks the tensor '0.1'"),
        ("weights", "{}", "lacks the field '0'"),
        ("options", None, "options in its metadata is damaged"),
        ("model", "[1]", "model in its metadata must be of another form"),
    ],
)
def test_files_that_lie(tmp_path, key, text, message):
    path = tmp_path / "moments.safetensors"
    layer = torch.nn.Linear(4, 4)
    with SecondMoments(torch.nn.Sequential(layer), folds=1) as moments:
        layer(torch.ones(40, 4))
    moments.save(path)
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"][key] = text
    if text is None:
        del header["__metadata__"][key]
    changed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])
    with pytest.raises(ValueError, match=message):
        moments.load(path)
    with pytest.raises(ValueError, match=message):
        MomentFile(path)


class Attention(torch.nn.Module):
    """Three layers that are handed the same tensor, and one that is handed another."""

    def __init__(self, d: int = 12) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (torch.nn.Linear(d, d) for _ in range(4))

    def forward(self, x: Any) -> Any:
        return self.o(torch.tanh(self.q(x) + self.k(x) - self.v(x)))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_layers_that_are_handed_the_same_tensor_share_a_sum(mode, monkeypatch):
    torch.manual_seed(4)
    model = Attention()
    counted = []
    core = row_sums._core
    monkeypatch.setattr(row_sums, "_core", SimpleNamespace(add_gram=lambda *a: counted.append(core.add_gram(*a))))
    batches = [torch.randn(2, 30, 12) for _ in range(3)]
    with SecondMoments(model, folds=1) as moments, mode():
        for batch in batches:
            model(batch + 0)
    assert len(counted) == 2 * 3
    assert moments.shared == {"k": "q", "v": "q"}
    assert list(moments) == ["q", "k", "v", "o"]
    assert moments["q"] is moments["k"] is moments["v"]
    assert moments["q"] is moments["q"]
    assert moments.rows == dict.fromkeys("qkvo", 180)
    torch.testing.assert_close(moments["v"], moment_of(torch.cat(batches).reshape(-1, 12)), rtol=1e-5, atol=1e-6)


def test_a_new_pass_counts_the_same_tensor_again():
    model = Attention()
    x = torch.randn(50, 12)
    with SecondMoments(model) as moments:
        model(x)
        model(x)
    assert moments.rows == dict.fromkeys("qkvo", 100)
    torch.testing.assert_close(moments["k"], moment_of(x), rtol=1e-5, atol=1e-6)


def test_sums_part_when_the_inputs_do():
    torch.manual_seed(5)
    model = Attention()
    x, y, z = torch.randn(3, 60, 12)
    with SecondMoments(model) as moments, torch.no_grad():
        model(x)
        assert moments.shared == {"k": "q", "v": "q"}
        model.q(y)
        model.k(y)
        y += 1  # written to in between
        model.v(y)
        model.q(z)
    was = y - 1
    assert moments.shared == {}
    for name, seen in {"q": [x, was, z], "k": [x, was], "v": [x, y]}.items():
        assert moments.rows[name] == 60 * len(seen)
        torch.testing.assert_close(moments[name], moment_of(torch.cat(seen)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_calls_gives_every_module_the_sum_of_what_it_was_handed(mode, seed):
    """Whatever is shared: against sums that every module has of its own."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    names = "abcd"
    model = torch.nn.ModuleDict({name: torch.nn.Linear(3, 2) for name in names})
    handed: dict[str, list[Any]] = {name: [] for name in names}
    with mode(), SecondMoments(model, folds=2) as moments:
        tensors = [torch.randn(4, 3) for _ in range(2)]
        for _ in range(60):
            kind = rng.integers(10)
            if kind == 0:
                tensors[rng.integers(2)].add_(1)
            elif kind == 1:
                tensors[rng.integers(2)] = torch.randn(4, 3)
            elif kind == 2:
                assert set(moments) <= set(names)  # reading settles what is waiting
            else:
                x = tensors[rng.integers(2)]
                x = x if rng.random() < 0.7 else x[:]
                for name in names if rng.random() < 0.7 else rng.choice(list(names), 2):
                    model[name](x)
                    handed[name].append(x.clone())
    for name, inputs in handed.items():
        assert moments.rows[name] == 4 * len(inputs)
        torch.testing.assert_close(moments[name], moment_of(torch.cat(inputs)), rtol=1e-5, atol=1e-5)


def test_convolutions_share_what_they_cut_alike():
    model = torch.nn.ModuleList([torch.nn.Conv2d(2, 3, 3), torch.nn.Conv2d(2, 4, 3), torch.nn.Conv2d(2, 3, 3, 2)])
    x = torch.randn(3, 2, 20, 20)
    with SecondMoments(model) as moments:
        for conv in model:
            conv(x)
    assert moments.shared == {"1": "0"}


def test_rows_are_chosen_alike_where_the_inputs_are_shared():
    model = Attention()
    batches = [torch.randn(200, 12) for _ in range(3)]
    collected = []
    for include in (None, "k"):
        with SecondMoments(model, share=0.3, include=include) as moments:
            for batch in batches:
                model(batch)
        collected.append(moments)
    assert collected[0].rows["k"] == collected[1].rows["k"]
    assert torch.equal(collected[0]["k"], collected[1]["k"])


@pytest.mark.parametrize("sizes", [[64] * 9, [1] * 5, [500], [7, 90, 2, 33, 33, 200]])
@pytest.mark.parametrize("folds", [2, 3, 4])
def test_folds_are_contiguous_parts_of_similar_size(sizes, folds):
    torch.manual_seed(6)
    layer = torch.nn.Linear(5, 2)
    data = torch.randn(sum(sizes), 5, dtype=torch.float64)
    with SecondMoments(torch.nn.Sequential(layer.double()), folds=folds) as moments:
        for batch in data.split(sizes):
            layer(batch)
    rows = moments.fold_rows("0")
    assert sum(rows) == moments.rows["0"] == len(data)
    assert len(rows) == min(folds, len(data))
    assert max(rows) <= 2 * min(rows[:-1])
    ends = np.cumsum([0, *rows])
    for number, (begin, end) in enumerate(itertools.pairwise(ends)):
        torch.testing.assert_close(moments.fold("0", number), moment_of(data[begin:end]))
        others = torch.cat([data[:begin], data[end:]])
        torch.testing.assert_close(moments.without("0", number), moment_of(others))
    torch.testing.assert_close(moments["0"], moment_of(data))
    with pytest.raises(ValueError, match=r"fold\(\): number must lie between 0 and"):
        moments.fold("0", folds)


def test_four_parts_are_kept_apart_by_default():
    layer = torch.nn.Linear(5, 2)
    with SecondMoments(torch.nn.Sequential(layer)) as moments:
        layer(torch.randn(40, 5))
    assert moments.fold_rows("0") == (10, 10, 10, 10)


def test_without_needs_a_second_part():
    layer = torch.nn.Linear(5, 2)
    with SecondMoments(torch.nn.Sequential(layer), folds=1) as moments:
        layer(torch.randn(20, 5))
    assert moments.fold_rows("0") == (20,)
    with pytest.raises(ValueError, match="folds=2 or more"):
        moments.without("0", 0)


def test_a_file_has_it_all_and_needs_no_torch(tmp_path):
    torch.manual_seed(7)
    model = Attention()
    with SecondMoments(model, folds=3, source="org/name") as moments:
        for _ in range(5):
            model(torch.randn(40, 12))
    path = tmp_path / "moments.safetensors"
    moments.save(path)
    file = MomentFile(path)
    assert list(file) == list(moments)
    assert file.rows == moments.rows
    assert file.rows_per_input == dict.fromkeys("qkvo", 200 / 12)
    assert file.shared == {"k": "q", "v": "q"}
    assert file["q"] is file["k"]
    assert not file["q"].flags.writeable
    assert file.weights == {name: f"{name}.weight" for name in "qkvo"}
    assert file.model.text("source") == "org/name"
    assert file.model.get("source_hash") is None
    assert file.warning == ""
    for name in file:
        assert np.array_equal(file[name], moments[name].numpy())
        assert np.array_equal(file[name], file[name].T)
        for number in range(3):
            assert np.array_equal(file.fold(name, number), moments.fold(name, number).numpy())
            assert np.array_equal(file.without(name, number), moments.without(name, number).numpy())
    going_on = SecondMoments(model, folds=3)
    going_on.load(path)
    more = torch.randn(40, 12)
    for watcher in (going_on, moments):
        torch.manual_seed(8)
        with watcher:
            model(more)
    assert going_on.shared == moments.shared
    for name in moments:
        assert torch.equal(going_on[name], moments[name])
    code = "import sys; from mpfast.checkpoints import MomentFile\n"
    code += "print(MomentFile(sys.argv[1])['q'].shape, 'torch' in sys.modules)"
    assert run_python("-c", code, str(path)).stdout.strip() == "(12, 12) False"
    with torch.no_grad():
        model.q.weight += 1
    with pytest.raises(ValueError, match="of other weights"):
        going_on.load(path)


def test_few_inputs_are_warned_of():
    layer = torch.nn.Linear(8, 2)
    moments = SecondMoments(torch.nn.Sequential(layer))
    with (
        pytest.warns(UserWarning, match=r"1 of 1 layers have seen fewer than 4 inputs per dimension \(0: 3\.9\)"),
        moments,
    ):
        layer(torch.randn(31, 8))
    assert moments.rows_per_input == {"0": 31 / 8}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with moments:
            layer(torch.randn(1, 8))
    assert moments.warning == ""


def test_inputs_without_a_moment_are_refused():
    layer = torch.nn.Linear(4, 2)
    moments = SecondMoments(torch.nn.Sequential(layer))
    with moments:
        layer(torch.full((20, 4), float("inf")))
    with pytest.raises(ValueError, match="inputs of '0' hold NaN or infinities"):
        moments["0"]


def test_what_was_cut_short_is_no_sum(monkeypatch, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    layer = torch.nn.Linear(4, 2)
    moments = SecondMoments(torch.nn.Sequential(layer))
    with moments:
        layer(torch.randn(20, 4))
    monkeypatch.setattr(row_sums, "_core", SimpleNamespace(add_gram=stop))
    with pytest.raises(KeyboardInterrupt), moments:
        layer(torch.randn(20, 4))
    for read in (lambda: moments["0"], lambda: moments.save(tmp_path / "m.safetensors")):
        with pytest.raises(ValueError, match="were being counted when an exception came"):
            read()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_element_type_gives_the_moment_of_its_numbers(dtype):
    torch.manual_seed(9)
    x = torch.randn(700, 30, dtype=torch.float64).to(dtype)
    layer = torch.nn.Linear(30, 2).to(dtype)
    with SecondMoments(torch.nn.Sequential(layer)) as moments:
        layer(x)
    # 256 roundings of single precision, relative to the mean of the products' magnitudes.
    bound = 256 * (2.0**-53 if dtype == torch.float64 else 2.0**-24)
    assert (moments["0"] - moment_of(x)).abs().max() <= bound * moment_of(x.abs()).max()


def test_opened_again_it_counts_nothing_twice():
    layer = torch.nn.Linear(4, 2)
    moments = SecondMoments(torch.nn.Sequential(layer))
    x = torch.randn(30, 4)
    with moments:
        with moments:
            layer(x)
        layer(x)
    layer(x)
    assert moments.rows == {"0": 60}
    torch.testing.assert_close(moments["0"], x.double().T @ x.double() / 30, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "bad", "good"),
    [
        (torch.nn.Linear(4, 2), [torch.randn(5, 3), torch.tensor(1.0)], torch.randn(20, 4)),
        (torch.nn.Conv2d(3, 2, 3), [torch.randn(2, 4, 9, 9), torch.randn(9, 9)], torch.randn(2, 3, 9, 9)),
    ],
)
def test_what_a_module_does_not_take_is_not_counted(module, bad, good):
    """The module itself complains, and the sums go on, whether or not it is the first input."""
    moments = SecondMoments(torch.nn.Sequential(module))
    with moments:
        for x in bad:
            with pytest.raises((RuntimeError, IndexError)):
                module(x)
        with pytest.raises(TypeError):
            module()
        module(good)
        with pytest.raises((RuntimeError, IndexError)):
            module(bad[0])
    once = SecondMoments(torch.nn.Sequential(module))
    with once:
        module(good)
    assert moments.rows == once.rows
    assert torch.equal(moments["0"], once["0"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"block": "2"}, "block must be a positive integer or None, not '2'"),
        ({"block": 2.0}, "block must be a positive integer or None, not 2.0"),
        ({"share": "all"}, "share must lie in"),
        ({"share": 0}, "share must lie in"),
        ({"share": 0.5, "seed": -1}, "seed must be an integer in"),
        ({"folds": 2.5}, "folds must be a positive integer"),
        ({"source": b"model"}, "source must be a path"),
        ({"layout": None}, "layout must be 'flat' or 'channel'"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(options, match):
    with pytest.raises((ValueError, TypeError), match=rf"SecondMoments\(\): {match}"):
        SecondMoments(torch.nn.Sequential(torch.nn.Linear(4, 2)), **options)


def test_what_is_no_module_and_no_mask_of_padding():
    for call in (SecondMoments, watchable_modules):
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, not dict"):
            call({"weight": torch.ones(2, 2)})
    moments = SecondMoments(torch.nn.Sequential(torch.nn.Linear(4, 2)))
    with pytest.raises(TypeError, match="valid must be a tensor or None, not list"):
        moments.valid = [True, False]


def test_a_file_is_of_the_sizes_of_the_model(tmp_path):
    """Without weights, as on the meta device, nothing else tells."""
    layer = torch.nn.Linear(8, 2)
    with SecondMoments(torch.nn.Sequential(layer)) as moments:
        layer(torch.randn(40, 8))
    path = tmp_path / "moments.safetensors"
    moments.save(path)
    same = SecondMoments(torch.nn.Sequential(torch.nn.Linear(8, 2, device="meta")))
    same.load(path)
    assert torch.equal(same["0"], moments["0"])
    other = SecondMoments(torch.nn.Sequential(torch.nn.Linear(6, 2, device="meta")))
    with pytest.raises(ValueError, match=r"shape \(8, 8\) for '0', which needs \(6, 6\)"):
        other.load(path)
    for bad in ("", None):
        with pytest.raises((ValueError, TypeError), match=r"save\(\): path "):
            moments.save(bad)
        with pytest.raises((ValueError, TypeError), match=r"MomentFile\(\): path "):
            MomentFile(bad)


def test_fused_projections_are_watched_as_modules_are(tmp_path):
    """Opened again, handed what they do not take, and in a file of another model."""
    attention = torch.nn.MultiheadAttention(16, 4)
    x = torch.randn(40, 2, 16)
    with torch.no_grad(), SecondMoments(attention) as moments:
        with moments:
            attention(x, x, x)
        for bad in ([x[..., :3]] * 3, [x]):
            with pytest.raises((RuntimeError, AssertionError, TypeError)):
                attention(*bad)
    names = [f"in_proj_weight[{label}]" for label in ("query", "key", "value")]
    assert moments.rows == dict.fromkeys(names, 80)
    path = tmp_path / "moments.safetensors"
    moments.save(path)
    again = SecondMoments(torch.nn.MultiheadAttention(16, 4, device="meta"))
    again.load(path)
    assert torch.equal(again[names[1]], moments[names[1]])
    with pytest.raises(ValueError, match=r"shape \(16, 16\) for 'in_proj_weight\[query\]', which needs \(24, 24\)"):
        SecondMoments(torch.nn.MultiheadAttention(24, 4, device="meta")).load(path)
    with torch.no_grad():
        attention.in_proj_weight[40] += 1
    with pytest.raises(ValueError, match=r"of other weights, 'in_proj_weight\[value\]' for one"):
        SecondMoments(attention).load(path)
