"""Checkpoints of packed integers: what mpfast's own reader, compressed-tensors and transformers make of them."""

import json
from importlib.resources import files

import numpy as np
import pytest

import mpfast
from mpfast import reconstruct
from mpfast.checkpoints import open_checkpoint, packed_codes, words_for
from mpfast.checkpoints.quantised.bit_streams import unpacked

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

from mpfast.integrations.torch import SecondMoments  # noqa: E402  # after what it needs is found
from tests.tiny_models import tiny  # noqa: E402


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A directory, the tensors in it, and the moments of its model."""
    folder = tmp_path_factory.mktemp("llama") / "dense"
    model = tiny("llama", num_hidden_layers=2)
    model.save_pretrained(folder)
    with SecondMoments(model, folds=2) as moments, torch.no_grad():
        for seed in range(4):
            model(torch.randint(0, 96, (4, 32), generator=torch.Generator().manual_seed(seed)))
    return folder, safetensors.load_file(folder / "model.safetensors"), moments


def numbers(folder, dtype=torch.float32):
    """The weights that a directory stands for."""
    checkpoint, found = open_checkpoint(folder), {}
    for info in checkpoint.tensors:
        if not info.name.endswith(("_scale", "_shape", "_zero_point")):
            tensor = torch.from_numpy(np.array(checkpoint.read(info.name)))
            found[info.name] = tensor.view(dtype) if tensor.dtype == torch.uint16 else tensor.to(dtype)
    return found


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 5, 32, 77])
def test_streams_of_bits_are_read_as_they_are_packed(bits, count):
    codes = np.random.default_rng(bits).integers(0, 2**bits, (3, count), np.uint8)
    words = packed_codes(codes, bits)
    assert (words.dtype, words.shape) == (np.dtype("<i4"), (3, words_for(count, bits)))
    assert np.array_equal(unpacked(words, bits, slice(0, count, 1)), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_are_those_of_reconstruct(llama, tmp_path, bits):
    folder, source, moments = llama
    result = mpfast.quantize(folder, tmp_path / "out", bits=bits, group=16, moments=moments, damping=0.01)
    assert len(result.layers) == 14
    found = numbers(tmp_path / "out")
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in source.items()}
    rows = {row.name: row for row in result.layers}
    for name, before in source.items():
        if name not in rows:
            assert torch.equal(found[name], before)
            continue
        C = moments[name.removesuffix(".weight")]
        fit = reconstruct.quantize(before, C, bits, group=16, symmetric=True)
        # The product of a code and a scale, in single precision, of the grid that the weights were rounded to.
        torch.testing.assert_close(found[name], fit.weights, rtol=2**-22, atol=0)
        assert rows[name].error == pytest.approx(fit.error, rel=1e-4)
        assert 0 < rows[name].heldout_error < 1
    assert result.bytes == (tmp_path / "out" / "model.safetensors").stat().st_size < result.bytes_before


def test_without_moments_every_weight_goes_to_the_nearest(llama, tmp_path):
    folder, source, _ = llama
    result = mpfast.quantize(folder, tmp_path / "out", bits=3, group=16)
    found = numbers(tmp_path / "out")
    for row in result.layers:
        before, after = (each[row.name].double().reshape(-1, 16) for each in (source, found))
        step = torch.maximum(before.amax(1) / 3, before.amin(1) / -4)
        assert ((after - before).abs() <= step[:, None] * (0.5 + 1e-6)).all()
        assert row.weight_error == pytest.approx(float((after - before).square().sum() / before.square().sum()))
        assert (row.error, row.heldout_error) == (None, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_transformers_loads_the_same_numbers(tmp_path, dtype):
    pytest.importorskip("compressed_tensors")
    model = tiny("llama", num_hidden_layers=2).to(dtype)
    model.save_pretrained(tmp_path / "dense", max_shard_size="30KB")
    mpfast.quantize(tmp_path / "dense", tmp_path / "out", group=32, exclude="*layers.1.mlp.up_proj.weight")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()
    # Scales are of the type of the weights, so that a product rounded to it is what compressed-tensors computes.
    dense.load_state_dict(numbers(tmp_path / "out", dtype))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    packed = [name for name, module in loaded.named_modules() if hasattr(module, "weight_packed")]
    assert len(packed) == 13
    tokens = torch.randint(0, 96, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, dense(tokens).logits)


def test_what_is_not_packed_is_named(llama, tmp_path):
    folder, source, moments = llama
    result = mpfast.quantize(folder, tmp_path / "out", group=64, include=["*.mlp.*", "lm_head*"])
    assert [row.name for row in result.layers] == [f"model.layers.{n}.mlp.down_proj.weight" for n in (0, 1)]
    reasons = {tensor.name: tensor.reason for tensor in result.skipped}
    assert reasons["model.layers.0.mlp.up_proj.weight"] == "32 inputs are no groups of 64"
    assert reasons["lm_head.weight"] == "head: stays as it is"
    ignored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    packed = {row.name.removesuffix(".weight") for row in result.layers}
    linear = {name.removesuffix(".weight") for name, tensor in source.items() if tensor.ndim == 2} - packed
    assert set(ignored) == linear - {"model.embed_tokens"}
    some = {name: moments[name] for name in moments if name.endswith("down_proj")}
    assert len(mpfast.quantize(folder, group=32, moments=some).layers) == 2


def test_experts_stay(tmp_path):
    tiny("moe", num_hidden_layers=1).save_pretrained(tmp_path / "dense")
    result = mpfast.quantize(tmp_path / "dense", group=16)
    assert not any("experts" in row.name for row in result.layers)
    experts = {tensor.name for tensor in result.skipped if "an expert" in tensor.reason}
    assert len(experts) == 4 * 3


def test_what_is_refused(llama, tmp_path):
    folder, _, _ = llama
    for options, fact in (
        ({"bits": 9}, "bits must lie between 2 and 8"),
        ({"bits": 1}, "bits must lie between 2 and 8"),
        ({"group": 0}, "group"),
        ({"damping": 0.1}, "goes with moments"),
        ({"group": 7}, "no layer is left to quantize; .* inputs are no groups of 7"),
    ):
        with pytest.raises(ValueError, match=fact):
            mpfast.quantize(folder, **options)
    safetensors.save_file({"fc.weight": torch.ones(64, 64)}, tmp_path / "alone.safetensors")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        mpfast.quantize(tmp_path / "alone.safetensors")
    mpfast.quantize(folder, tmp_path / "out", group=32)
    with pytest.raises(ValueError, match="is quantised"):
        mpfast.quantize(tmp_path / "out", group=32)
    with pytest.raises(ValueError, match="which is not checked"):
        mpfast.verify(tmp_path / "out")
    assert mpfast.diff(folder, tmp_path / "out").changed == 14
    model = tiny("llama", num_hidden_layers=1).half()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(1e-7)
    model.save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match=r"up_proj\.weight has scales that float16 does not hold"):
        mpfast.quantize(tmp_path / "small", group=32)


def test_command(llama, tmp_path, capsys):
    pytest.importorskip("typer")
    jsonschema = pytest.importorskip("jsonschema")
    from mpfast.cli import main

    folder, _, moments = llama
    moments.save(tmp_path / "moments.safetensors")

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["quantize", str(folder), *arguments])
        return ended.value.code, capsys.readouterr().out

    code, out = run("-o", str(tmp_path / "out"), "--group", "32", "--moments", str(tmp_path / "moments.safetensors"))
    assert (code, "14 matrices in 4 bits, groups of 32" in out) == (0, True)
    schema = json.loads((files("mpfast.models") / "schemas" / "quantize.json").read_text())
    code, out = run("--dry-run", "--json", "-", "--group", "32", "--bits", "3")
    jsonschema.validate(json.loads(out), schema, cls=jsonschema.Draft202012Validator)
    assert run("--dry-run", "--damping", "0.1")[0] == 2
