"""Checkpoints of eight-bit and four-bit floating-point weights: read as numbers, or refused, and never cast."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import mpfast
from mpfast.arrays import QuantisedArray, narrowed
from mpfast.checkpoints import open_checkpoint, roles_of, select_layers
from mpfast.checkpoints.layers import Views, layer_matrix
from mpfast.checkpoints.mapping import ArrayMapping
from mpfast.checkpoints.quantised import ScaledCodes, dequantised, float8
from mpfast.checkpoints.quantised.group import NotDecodedError

from .quantised_encoders import group
from .quantised_weights import CASES, CONFIG, as_float8, block_float8, ml_dtypes, nvfp4_parts, said_by, weights, write


def opened(folder, case, *, said=True):
    """Write a case as a checkpoint and open it, with its configuration or without."""
    tensors, config, stored, numbers = CASES[case]()
    write(folder / "model.safetensors", tensors, (config or {}).get("metadata"))
    if config is not None and "metadata" not in config and said:
        (folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(folder)
    (info,) = (info for info in checkpoint.tensors if info.stored)
    return checkpoint, info, stored, numbers


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_the_other_library(case, tmp_path):
    """Codes by ml_dtypes, each times its scale in float32: to the bit."""
    checkpoint, info, stored, numbers = opened(tmp_path, case)
    assert (info.shape, info.stored) == (numbers.shape, stored)
    array = checkpoint.read(info.name)
    assert isinstance(array, QuantisedArray)
    np.testing.assert_array_equal(np.asarray(array), numbers)
    decoded, dtype = array.decoded()
    assert dtype == info.dtype
    np.testing.assert_array_equal(decoded, narrowed(numbers) if dtype == "bfloat16" else numbers)
    layers, skipped, _ = select_layers(checkpoint, None, None)
    assert {layer.tensor for layer in layers} == {info.name}
    parts = {tensor.name for tensor in checkpoint.tensors} - {info.name, "scaled_fp8"}
    assert all(skipped[name].startswith(f"scale of the quantised {info.name}") for name in parts)


@pytest.mark.parametrize("case", CASES)
def test_parts_alone_tell_the_format(case, tmp_path):
    """Without a configuration, and so without the size of a block, too."""
    *_, info, stored, numbers = opened(tmp_path, case, said=False)
    assert (info.shape, info.stored) == (numbers.shape, stored)


def stored_in(folder, files, config=None):
    """Write a checkpoint of several files with its index."""
    for name, tensors in files.items():
        write(folder / name, tensors)
    index = {"weight_map": {tensor: name for name, tensors in files.items() for tensor in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder)


def test_a_scale_in_another_shard(tmp_path):
    tensors, config, _, numbers = block_float8()
    files = {"one.safetensors": {"l.weight": tensors["l.weight"]}}
    files["two.safetensors"] = {"l.weight_scale_inv": tensors["l.weight_scale_inv"]}
    checkpoint = stored_in(tmp_path, files, config)
    np.testing.assert_array_equal(np.asarray(checkpoint.read("l.weight")), numbers)
    for name in ("l.weight", "l.weight_scale_inv"):
        checkpoint.prefetch(name)
        checkpoint.release(name)
    np.testing.assert_array_equal(np.asarray(checkpoint.read("l.weight")), numbers)


REFUSED = {
    "no scale": ({}, "has no scale, and is never cast"),
    "two scales": (
        {"weight_scale": np.ones((3, 3), np.float32), "weight_scale_inv": np.ones((3, 3), np.float32)},
        r"l\.weight_scale belongs to it, and what it does is not known",
    ),
    "a factor nobody knows": (
        {"weight_scale_inv": np.ones((3, 3), np.float32), "pre_quant_scale": np.ones(260, np.float32)},
        r"l\.pre_quant_scale belongs to it",
    ),
    "too few scales": ({"weight_scale_inv": np.ones((2, 3), np.float32)}, r"shape \(2, 3\), which fits no blocks"),
    "one scale for many blocks": ({"weight_scale_inv": np.ones((1, 1), np.float32)}, "fits no blocks"),
    "a scale of another axis": ({"weight_scale": np.ones(260, np.float32)}, "fits no blocks"),
    "integers": ({"weight_scale": np.ones((3, 3), np.int32)}, "is int32, which scales are not"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case, tmp_path):
    parts, reason = REFUSED[case]
    codes = block_float8()[0]["l.weight"]
    write(tmp_path / "model.safetensors", {"l.weight": codes} | {f"l.{word}": part for word, part in parts.items()})
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    checkpoint = open_checkpoint(tmp_path)
    layers, skipped, _ = select_layers(checkpoint, None, None)
    assert layers == []
    assert roles_of(checkpoint)["l.weight"].kind == "quantised"
    assert re.search(reason, skipped["l.weight"])


def test_a_quantised_checkpoint_is_analysed_as_its_numbers_are(tmp_path):
    tensors, config, _, numbers = block_float8()
    write(tmp_path / "model.safetensors", {**tensors, "n.weight": np.ones(260, np.float32)})
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = mpfast.analyze(tmp_path)
    (row,) = found.layers
    (dense,) = mpfast.analyze({"l.weight": numbers}).layers
    assert (row.name, row.shape, row.sigma_plus) == ("l.weight", (300, 260), dense.sigma_plus)
    assert (row.stored, dense.stored, row.dtype) == ("fp8 128x128", "", "float32")
    assert np.isnan(dense.quantization_noise)
    assert {tensor.name: tensor.reason for tensor in found.skipped}["l.weight_scale_inv"].startswith(
        "scale of the quantised l.weight"
    )
    with pytest.raises(ValueError, match=r"model is quantised: l\.weight is packed"):
        mpfast.prune(tmp_path, out=tmp_path / "out", sparsity=0.5)


def test_arrays_in_memory(tmp_path):
    torch = pytest.importorskip("torch")
    tensors, _, _, numbers = block_float8()
    state = {
        "l.weight": torch.from_numpy(tensors["l.weight"].view(np.uint8)).view(torch.float8_e4m3fn),
        "l.weight_scale_inv": torch.from_numpy(tensors["l.weight_scale_inv"]),
    }
    np.testing.assert_array_equal(np.asarray(open_checkpoint(state).read("l.weight")), numbers)
    np.testing.assert_array_equal(np.asarray(open_checkpoint(tensors).read("l.weight")), numbers)
    whole = mpfast.spectrum(open_checkpoint(state).read("l.weight"))
    assert whole.edge.sigma_plus == mpfast.spectrum(numbers).edge.sigma_plus


def refused(folder, tensors, config=None):
    """Why the first packed tensor is not read."""
    write(folder / "model.safetensors", tensors)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(folder)
    assert not any(info.stored for info in checkpoint.tensors)
    return next(role.reason for role in roles_of(checkpoint).values() if role.kind == "quantised")


def without(case, *words, **instead):
    """The parts of a case without some, and with others in their place; and its configuration."""
    tensors, config, *_ = CASES[case]()
    kept = {name: part for name, part in tensors.items() if name.rpartition(".")[2] not in words}
    return kept | {f"l.{word}": part for word, part in instead.items()}, config


FOUR_BITS = {
    "no scale of the matrix": (
        without("compressed-tensors NVFP4", "weight_global_scale"),
        "has no weight_global_scale",
    ),
    "no scales": (without("compressed-tensors MXFP4", "weight_scale"), "has no weight_scale, and is never cast"),
    "no scale of the matrix of ModelOpt": (without("ModelOpt NVFP4", "weight_scale_2"), "has no weight_scale_2"),
    "no scale of the matrix of transformers": (
        without("transformers' NVFP4", "weight_global_scale"),
        "has no weight_global_scale",
    ),
    "scales in tiles alone": (without("transformers' NVFP4", "weight_sf_rowmajor"), "has no weight_sf_rowmajor"),
    "scales in bytes that are none": (
        without("transformers' NVFP4", weight_sf_rowmajor=np.ones((144, 6), np.int8)),
        "is int8, where uint8 is expected",
    ),
    "empty scales": (without("block float8", weight_scale_inv=np.ones((0, 1), np.float32)), "_inv is empty"),
    "scales of other blocks": (
        without("ModelOpt NVFP4", weight_scale=np.ones((48, 3), ml_dtypes.float8_e4m3fn)),
        r"\(48, 3\), where \(48, 6\) is expected",
    ),
    "scales of another type": (
        without("ModelOpt NVFP4", weight_scale=np.ones((48, 6), np.float32)),
        "is float32, where float8_e4m3fn",
    ),
    "SVDQuant": (
        without("ModelOpt NVFP4", svdquant_lora_a=np.ones((8, 96), ml_dtypes.bfloat16)),
        "svdquant_lora_a belongs to it",
    ),
    "a method nobody has seen": (
        ({"l.weight": np.ones((16, 16), np.uint8)}, said_by("new")),
        "a format that is not read",
    ),
    "ComfyUI's tiles": (
        without("ModelOpt NVFP4", comfy_quant=np.frombuffer(b'{"format": "nvfp4"}', np.uint8)),
        r"has 288 scales in tiles, where 1024 are expected for \(48, 96\)",
    ),
    "ComfyUI's other formats": (
        without("ModelOpt NVFP4", comfy_quant=np.frombuffer(b'{"format": "int8_tensorwise"}', np.uint8)),
        "is 'int8_tensorwise' of ComfyUI, which is not read",
    ),
    "ComfyUI's tiles without a scale": (without("ComfyUI MXFP8", "weight_scale"), "has no weight_scale, and is never"),
    "ComfyUI's tiles without the last scale": (without("ComfyUI NVFP4", "weight_scale_2"), "has no weight_scale_2"),
    "ComfyUI's scales of another type": (
        without("ComfyUI NVFP4", weight_scale=np.ones((256, 8), np.float32)),
        "is float32, where float8_e4m3fn is expected",
    ),
    "no JSON": (without("ModelOpt NVFP4", comfy_quant=np.frombuffer(b"{", np.uint8)), "comfy_quant is no valid JSON"),
}


@pytest.mark.parametrize("case", FOUR_BITS)
def test_four_bits_that_do_not_fit_are_refused(case, tmp_path):
    (tensors, config), reason = FOUR_BITS[case]
    assert re.search(reason, refused(tmp_path, tensors, config))


@pytest.mark.parametrize("size", [128, 2**31, 2**70])
def test_blocks_larger_than_the_matrix(size, tmp_path):
    """As a configuration may say, whatever its numbers."""
    codes, scales, numbers = as_float8(weights((96, 80)), (None, None))
    write(tmp_path / "model.safetensors", {"l.weight": codes, "l.weight_scale_inv": scales})
    said = {"quant_method": "fp8", "weight_block_size": [size, size]}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": said}))
    np.testing.assert_array_equal(np.asarray(open_checkpoint(tmp_path).read("l.weight")), numbers)


def test_a_group_of_three_dimensions_has_a_scale_for_each_matrix():
    packed, scales, _, _ = nvfp4_parts((2, 48, 96), divided=False)
    last = np.array([0.5, 2.0], np.float32)
    model = {"m.experts.down_proj.weight": packed, "m.experts.down_proj.weight_scale": scales}
    numbers = np.asarray(open_checkpoint({**model, "m.experts.down_proj.weight_scale_2": last}).read(next(iter(model))))
    for matrix in range(2):
        alone = {f"l.{name.rpartition('.')[2]}": part[matrix] for name, part in model.items()}
        alone["l.weight_scale_2"] = last[matrix : matrix + 1]
        np.testing.assert_array_equal(numbers[matrix], np.asarray(open_checkpoint(alone).read("l.weight")))


@pytest.mark.parametrize("stem", ["model.layers.0.mlp.experts.gate_up_proj", "block.0.mlp.mlp1_weight"])
def test_experts_of_gpt_oss_are_out_in_with_gate_and_up_in_turn(stem):
    """Unlike the stacks of the dense model, which `FAMILIES` describes as (in, out)."""
    tensors, config, _, numbers = CASES["gpt-oss" if "experts" in stem else "gpt-oss by OpenAI's names"]()
    checkpoint = ArrayMapping(tensors)
    checkpoint.config = config
    checkpoint = dequantised(checkpoint)
    layers, _, _ = select_layers(checkpoint, None, None, Views())
    assert [layer.name for layer in layers] == [f"{stem}[{e},{part}]" for e in range(2) for part in ("gate", "up")]
    assert all(layer.input_axes == (2,) for layer in layers)
    np.testing.assert_array_equal(np.asarray(layer_matrix(checkpoint.read(stem), layers[3])), numbers[1, 1::2])
    # Square: the configuration's width does not tell.
    down = {"m.mlp.experts.down_proj_blocks": np.zeros((2, 64, 2, 16), np.uint8)}
    down["m.mlp.experts.down_proj_scales"] = np.zeros((2, 64, 2), np.uint8)
    square = ArrayMapping(down)
    square.config = config
    assert select_layers(dequantised(square), None, None)[0][0].input_axes == (2,)


@pytest.mark.parametrize("case", ["block float8", "gpt-oss", "compressed-tensors NVFP4", "MXFP8"])
def test_the_share_of_the_noise_that_is_rounding(case):
    """As much as the noise has more than the weights before: here these are noise, and the difference is known."""
    tensors, _, _, numbers = CASES[case]()
    rows = mpfast.analyze(tensors).layers
    W = weights(numbers.shape)
    for matrix, row in enumerate(rows):
        before, after = (stack[matrix] if stack.ndim == 3 else stack for stack in (W, numbers))
        share = np.square(before - after).mean(dtype=np.float64) / row.variance
        # Taken evenly between two codes, where the density of the weights falls: to a tenth.
        assert row.quantization_noise == pytest.approx(share, rel=0.1), row.stored


def test_of_a_stack_one_expert_is_read_at_a_time(monkeypatch):
    """Whatever looks at the experts one by one, and once each."""
    tensors, *_, numbers = CASES["a stack of experts"]()
    read = []
    coded = ScaledCodes.coded

    def counted(self, matrix, chosen):
        read.append(len(range(chosen.start, chosen.stop, chosen.step)))
        return coded(self, matrix, chosen)

    monkeypatch.setattr(ScaledCodes, "coded", counted)
    for look in (mpfast.analyze, mpfast.models.ranks):
        read.clear()
        assert len(look(tensors)) == 3
        assert sum(read) == numbers.shape[0] * numbers.shape[1]


@pytest.mark.parametrize(("side", "block"), [(192, 96), (384, 192), (640, 320), (256, 128)])
def test_blocks_are_of_the_size_that_a_group_of_layers_says(side, block):
    count = side // block
    rng = np.random.default_rng(side)
    codes = rng.integers(0, 120, (side, side)).astype(np.uint8).view(ml_dtypes.float8_e4m3fn)
    scales = rng.random((count, count)).astype(np.float32)
    weights = {"type": "float", "num_bits": 8, "strategy": "block", "block_structure": [block, block]}
    said = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    parts = {"l.weight": codes, "l.weight_scale": scales}
    found = float8.decoder(group(parts, said))
    expected = codes.astype(np.float32) * np.kron(scales, np.ones((block, block), np.float32))
    np.testing.assert_array_equal(found.rows(0, slice(0, side, 1)), expected)
    if side != 256:  # with nothing said, squares of a power of two that are cut off fit, too
        with pytest.raises(NotDecodedError, match="fits no blocks"):
            float8.decoder(group(parts))


def test_blocks_of_two_sizes_that_both_fit_are_open():
    codes = np.zeros((192, 192), np.uint8).view(ml_dtypes.float8_e4m3fn)
    layers = {f"group_{side}": {"weights": {"type": "float", "block_structure": [side, side]}} for side in (96, 128)}
    said = {"quant_method": "compressed-tensors", "config_groups": layers}
    with pytest.raises(NotDecodedError, match="fits no blocks"):
        float8.decoder(group({"l.weight": codes, "l.weight_scale": np.ones((2, 2), np.float32)}, said))


def test_blocks_are_of_transformers_own_size_where_its_method_says_nothing():
    transformers = pytest.importorskip("transformers")
    assert tuple(transformers.FineGrainedFP8Config().weight_block_size) == (128, 128)
    codes = np.zeros((160, 64), np.uint8).view(ml_dtypes.float8_e4m3fn)
    found = group({"l.weight": codes, "l.weight_scale_inv": np.ones((2, 1), np.float32)}, {"quant_method": "fp8"})
    assert float8.decoder(found).scales.block == (128, 64)
