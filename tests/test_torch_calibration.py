"""Second moments collected from running PyTorch models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mpfast.integrations.torch.calibration import SecondMoments  # noqa: E402
from mpfast.integrations.torch.layers import input_rows, prunable_modules  # noqa: E402
from mpfast.masks.projection import output_error, project  # noqa: E402


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
    x = torch.randn(2, 3, 4)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    with SecondMoments(model) as moments:
        moments.valid = valid
        model(x)
    assert moments.rows["0"] == 3
    torch.testing.assert_close(moments["0"], moment_of(x[valid]), rtol=1e-5, atol=1e-6)


def test_modules_called_by_keyword() -> None:
    layer = torch.nn.Linear(4, 4)
    x = torch.randn(5, 4)
    with SecondMoments(layer) as moments:
        layer(input=x)
    assert moments.rows == {"": 5}
    torch.testing.assert_close(moments[""], moment_of(x), rtol=1e-5, atol=1e-6)


def test_narrow_types_and_shared_modules() -> None:
    shared = torch.nn.Linear(4, 4).to(torch.bfloat16)
    model = torch.nn.Sequential(shared, shared)
    with SecondMoments(model) as moments:
        model(torch.randn(5, 4, dtype=torch.bfloat16))
    assert moments.rows == {"0": 10}
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
        ("rows", "", "rows in its metadata is damaged"),
        ("calls", "[" * 20_000, "nested too deeply"),
        ("rows", '{"0": -3}', "0 must be an integer"),
        ("calls", "[1]", "calls must be an object"),
        ("options", None, "options in its metadata is damaged"),
    ],
)
def test_files_that_lie(tmp_path, key, text, message):
    import json
    import struct

    path = tmp_path / "moments.safetensors"
    collected = SecondMoments(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    collected.save(path)
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"][key] = text
    if text is None:
        del header["__metadata__"][key]
    changed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])
    with pytest.raises(ValueError, match=message):
        collected.load(path)


def test_a_file_says_how_many_rows_every_module_has_seen(tmp_path):
    """Without them the sums are no means."""
    path = tmp_path / "moments.safetensors"
    layer = torch.nn.Linear(4, 4)
    with SecondMoments(torch.nn.Sequential(layer)) as moments:
        layer(torch.ones(3, 4))
    moments.rows = {}
    moments.save(path)
    with pytest.raises(ValueError, match="rows lacks the field '0'"):
        SecondMoments(torch.nn.Sequential(layer)).load(path)
