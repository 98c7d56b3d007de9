"""Quantised weights as the libraries that wrote them decode them, where these are installed."""

from __future__ import annotations

import numpy as np
import pytest

from mpfast.checkpoints import open_checkpoint

from .quantised_weights import CASES, as_float8, weights

torch = pytest.importorskip("torch")
# Each rounds to bfloat16 somewhere: to its spacing of 2^-8.
BFLOAT16 = 2.0**-8


def as_torch(array):
    kinds = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e8m0fnu": torch.float8_e8m0fnu, "bfloat16": torch.bfloat16}
    kind = kinds.get(array.dtype.name)
    if kind is None:
        return torch.from_numpy(np.array(array))
    return torch.from_numpy(array.view(f"u{array.itemsize}").copy()).view(kind)


def parts_and_numbers(case):
    """The parts by their words, and what is read of them."""
    tensors, *_ = CASES[case]()
    checkpoint = open_checkpoint(tensors)
    (name,) = (info.name for info in checkpoint.tensors if info.stored)
    return {part.rpartition(".")[2]: as_torch(array) for part, array in tensors.items()}, np.asarray(
        checkpoint.read(name)
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", ["DeepSeek-V4", "exponents", "experts of DeepSeek-V4", "MXFP8 in bytes"])
def test_transformers_fp8(case):
    quantised = pytest.importorskip("transformers.integrations.finegrained_fp8")
    parts, numbers = parts_and_numbers(case)
    scale = next(part for word, part in parts.items() if "scale" in word)
    found = quantised.Fp8Dequantize(None)._dequantize_one(parts["weight"], scale, torch.float32)
    np.testing.assert_array_equal(found.numpy(), numbers)


@pytest.mark.slow
def test_transformers_gpt_oss():
    """Its parameter is the transpose."""
    quantised = pytest.importorskip("transformers.integrations.mxfp4")
    tensors, *_ = CASES["gpt-oss"]()
    blocks, scales = (torch.from_numpy(np.array(tensor)) for tensor in tensors.values())
    found = quantised.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    checkpoint = open_checkpoint(tensors)
    numbers = np.asarray(checkpoint.read(checkpoint.tensors[0].name))
    np.testing.assert_array_equal(found.numpy().transpose(0, 2, 1), numbers)


COMPRESSED = {
    "compressed-tensors NVFP4": (
        "NVFP4PackedCompressor",
        {"num_bits": 4, "strategy": "tensor_group", "group_size": 16},
    ),
    "compressed-tensors MXFP4": (
        "MXFP4PackedCompressor",
        {"num_bits": 4, "strategy": "group", "group_size": 32},
    ),
    "compressed-tensors, by channel": ("FloatQuantizationCompressor", {"num_bits": 8, "strategy": "channel"}),
    "compressed-tensors, one scale": ("FloatQuantizationCompressor", {"num_bits": 8, "strategy": "tensor"}),
    "MXFP8 in bytes": ("MXFP8QuantizationCompressor", {"num_bits": 8, "strategy": "group", "group_size": 32}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPRESSED)
def test_compressed_tensors(case):
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    parts, numbers = parts_and_numbers(case)
    name, options = COMPRESSED[case]
    scheme = quantization.QuantizationScheme(
        targets=["Linear"], weights=quantization.QuantizationArgs(type="float", symmetric=True, **options)
    )
    found = getattr(compressors, name).decompress(parts, scheme)["weight"].to(torch.float32).numpy()
    np.testing.assert_allclose(found, numbers, rtol=2 * BFLOAT16, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ComfyUI NVFP4", "ComfyUI MXFP8"])
def test_comfyui(case):
    eager = pytest.importorskip("comfy_kitchen.backends.eager.quantization")
    parts, numbers = parts_and_numbers(case)
    if "weight_scale_2" in parts:
        scales = parts["weight_scale_2"], parts["weight_scale"]
        found = eager.dequantize_nvfp4(parts["weight"], *scales, torch.float32)
    else:
        found = eager.dequantize_mxfp8(parts["weight"], parts["weight_scale"], torch.float32)
    np.testing.assert_allclose(found.numpy(), numbers, rtol=3e-7, atol=0)


def test_live_experts_of_float8_are_not_refitted():
    """They are seen as numbers where they are analysed, and as they are stored where they would be changed."""
    import mpfast
    from mpfast.integrations.torch import reconstruct_model

    codes, scales, _ = as_float8(weights((2, 32, 32)), (None, None))

    class Experts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.down_proj = torch.nn.Parameter(as_torch(codes), requires_grad=False)
            self.down_proj_scale_inv = torch.nn.Parameter(as_torch(scales), requires_grad=False)

        def forward(self, x):
            return x @ (self.down_proj.float() * self.down_proj_scale_inv)[0]

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(32, 32)
            self.experts = Experts()

        def forward(self, x):
            return x + self.experts(self.fc(x))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([Block(), Block()])

        def forward(self, x):
            return self.layers[1](self.layers[0](x))

    model = Model()
    analysed = {row.tensor for row in mpfast.analyze(model)}
    assert {"layers.0.fc.weight", "layers.0.experts.down_proj"} <= analysed
    result = reconstruct_model(model, [torch.randn(256, 32)], sparsity=0.5)
    assert {row.name for row in result.report} == {"layers.0.fc.weight", "layers.1.fc.weight"}
    kept = result.model.layers[0].experts.down_proj
    np.testing.assert_array_equal(kept.view(torch.uint8), codes.view(np.uint8))
    assert "quantised" in result.skipped["layers.0.experts.down_proj"]
