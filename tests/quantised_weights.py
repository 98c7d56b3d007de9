"""Encoders of quantised weights: the parts as files hold them, and the numbers that they stand for.

Codes and scales are rounded by ml_dtypes; a number is its code times its scale, in float32.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from mpfast.checkpoints.safetensors import element_code

ml_dtypes = pytest.importorskip("ml_dtypes")


def write(path, tensors, metadata=None):
    """Write a safetensors file; types that NumPy lacks are those of ml_dtypes."""
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, array in tensors.items():
        content = np.ascontiguousarray(array).tobytes()
        shape, offsets = list(array.shape), [len(data), len(data) + len(content)]
        header[name] = {"dtype": element_code(array.dtype.name), "shape": shape, "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def weights(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 32


def grown(scales, block, shape):
    """One scale for each entry."""
    for axis, side in enumerate(block):
        scales = scales.repeat(side, axis=axis - 2)
    return scales[..., : shape[-2], : shape[-1]]


def as_float8(W, block, *, powers=False, dtype=ml_dtypes.float8_e4m3fn):
    """Encode W with a scale for each block, each side of it the whole side where it is None."""
    block = [side or whole for side, whole in zip(block, W.shape[-2:], strict=True)]
    counts = [-(-whole // side) for side, whole in zip(block, W.shape[-2:], strict=True)]
    scales = np.empty((*W.shape[:-2], *counts), np.float32)
    for row, column in np.ndindex(*counts):
        part = W[..., row * block[0] : (row + 1) * block[0], column * block[1] : (column + 1) * block[1]]
        scales[..., row, column] = np.abs(part).max(axis=(-2, -1)) / float(ml_dtypes.finfo(dtype).max)
    if powers:
        scales = np.exp2(np.ceil(np.log2(scales))).astype(np.float32)
    codes = (W / grown(scales, block, W.shape)).astype(dtype)
    return codes, scales, codes.astype(np.float32) * grown(scales, block, W.shape)


def exponents(scales):
    return scales.astype(ml_dtypes.float8_e8m0fnu)


CONFIG = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}


def said_by(method, **more):
    return {"quantization_config": {"quant_method": method}, **more}


def block_float8():
    codes, scales, numbers = as_float8(weights((300, 260)), (128, 128))
    return {"l.weight": codes, "l.weight_scale_inv": scales}, CONFIG, "fp8 128x128", numbers


def scalar(shape):
    def case():
        codes, scales, numbers = as_float8(weights((96, 80)), (None, None))
        return {"l.weight": codes, "l.weight_scale_inv": scales.reshape(shape)}, None, "fp8", numbers

    return case


def ue8m0_bytes():
    codes, scales, numbers = as_float8(weights((256, 384)), (128, 128), powers=True)
    stored = exponents(scales).view(np.uint8)
    said = {"quantization_config": {**CONFIG["quantization_config"], "scale_fmt": "ue8m0"}}
    return {"l.weight": codes, "l.weight_scale_inv": stored}, said, "fp8 128x128", numbers


def deepseek_v4():
    codes, scales, numbers = as_float8(weights((256, 384)), (128, 128), powers=True)
    return {"l.weight": codes, "l.scale": exponents(scales)}, CONFIG, "fp8 128x128", numbers


def per_channel():
    codes, scales, numbers = as_float8(weights((96, 80)), (1, None))
    return {"l.weight": codes, "l.weight_scale": scales.astype(np.float32)}, None, "fp8 by row", numbers


def stack_of_experts():
    codes, scales, numbers = as_float8(weights((3, 256, 200)), (128, 128))
    tensors = {"m.experts.gate_up_proj": codes, "m.experts.gate_up_proj_scale_inv": scales}
    return tensors, CONFIG, "fp8 128x128", numbers


def small_blocks():
    codes, scales, numbers = as_float8(weights((96, 128)), (32, 32))
    said = {"quantization_config": {"quant_method": "quark"}}
    return {"l.weight": codes, "l.weight_scale": scales}, said, "fp8 32x32", numbers


def compressed_tensors_tensor():
    codes, scales, numbers = as_float8(weights((96, 80)), (None, None))
    scales = scales.reshape(1).astype(ml_dtypes.bfloat16)
    numbers = codes.astype(np.float32) * np.float32(scales[0])
    tensors = {"l.weight": codes, "l.weight_scale": scales, "l.input_scale": np.ones(1, np.float32)}
    return tensors, said_by("compressed-tensors"), "fp8", numbers


def compressed_tensors_channel():
    codes, scales, numbers = as_float8(weights((96, 80)), (1, None))
    return {"l.weight": codes, "l.weight_scale": scales}, said_by("compressed-tensors"), "fp8 by row", numbers


def compressed_tensors_block():
    codes, scales, numbers = as_float8(weights((300, 260)), (128, 128))
    return {"l.weight": codes, "l.weight_scale": scales}, said_by("compressed-tensors"), "fp8 128x128", numbers


def with_a_cache():
    """Scales of what comes in and goes out, which say nothing of the weights."""
    codes, scales, numbers = as_float8(weights((96, 80)), (None, None))
    tensors = {"l.k_proj.weight": codes, "l.k_proj.weight_scale": scales.reshape(1)}
    about = ("input_scale", "input_zero_point", "output_scale", "k_scale")
    tensors |= {f"l.k_proj.{word}": np.ones(1, np.float32) for word in about}
    return tensors, said_by("compressed-tensors"), "fp8", numbers


def modelopt_float8():
    codes, scales, numbers = as_float8(weights((96, 80)), (None, None))
    tensors = {"l.weight": codes, "l.weight_scale": scales.reshape(()), "l.input_scale": np.ones((), np.float32)}
    return tensors, said_by("modelopt"), "fp8", numbers


def fbgemm():
    codes, scales, numbers = as_float8(weights((96, 80)), (1, None))
    tensors = {"l.weight": codes, "l.weight_scale": scales, "l.input_scale_ub": np.ones(1, np.float32)}
    return tensors, said_by("fbgemm_fp8"), "fp8 by row", numbers


def fbgemm_experts():
    """Llama 4: (E, in, out), and a scale for each output."""
    codes, scales, numbers = as_float8(weights((2, 64, 96)), (None, 1))
    tensors = {"m.experts.down_proj": codes, "m.experts.down_proj_scale": scales}
    return tensors, said_by("fbgemm_fp8"), "fp8 by column", numbers


def comfy(scale, inputs, *, beside=False, header=False, dtype=ml_dtypes.float8_e4m3fn):
    def case():
        codes, scales, numbers = as_float8(weights((96, 80)), (None, None), dtype=dtype)
        said = {"format": np.dtype(dtype).name}
        tensors = {"b.l.weight": codes, f"b.l.{scale}": scales.reshape(()), f"b.l.{inputs}": np.ones((), np.float32)}
        if beside:
            tensors = {"b.l.comfy_quant": np.frombuffer(json.dumps(said).encode(), np.uint8)} | tensors
        else:
            tensors["scaled_fp8"] = np.zeros(2, dtype)
        metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": {"b.l": said}})}
        label = "fp8" if dtype == ml_dtypes.float8_e4m3fn else "fp8 e5m2"
        return tensors, {"metadata": metadata} if header else None, label, numbers

    return case


def mxfp8(stored):
    def case():
        codes, scales, numbers = as_float8(weights((96, 128)), (1, 32), powers=True)
        return {"l.weight": codes, "l.weight_scale": stored(scales)}, said_by("mxfp8"), "mxfp8", numbers

    return case


def as_float4(W, size, scales):
    """Encode W in E2M1, two in a byte with the low nibble first, under given scales for each `size` of a row."""
    codes = (W / scales.repeat(size, axis=-1)).astype(ml_dtypes.float4_e2m1fn)
    numbers = codes.astype(np.float32) * scales.repeat(size, axis=-1)
    nibbles = codes.view(np.uint8) & 15
    return nibbles[..., ::2] | nibbles[..., 1::2] << 4, numbers


def powers_for(W):
    largest = np.abs(W).reshape(*W.shape[:-1], -1, 32).max(axis=-1)
    return np.exp2(np.floor(np.log2(largest)) - 2).astype(np.float32)


def gpt_oss(stem, join):
    def case():
        W = weights((2, 96, 64))
        scales = powers_for(W)
        packed, numbers = as_float4(W, 32, scales)
        tensors = {f"{stem}{join}blocks": packed.reshape(2, 96, 2, 16)}
        tensors[f"{stem}{join}scales"] = exponents(scales).view(np.uint8)
        return tensors, said_by("mxfp4", model_type="gpt_oss", hidden_size=64), "mxfp4", numbers

    return case


def rows_of_mxfp4(codes, scale, method, dtype=np.uint8):
    def case():
        W = weights((48, 96))
        scales = powers_for(W)
        packed, numbers = as_float4(W, 32, scales)
        tensors = {f"l.{codes}": packed.view(dtype), f"l.{scale}": exponents(scales)}
        if method == "compressed-tensors":
            tensors[f"l.{scale}"] = tensors[f"l.{scale}"].view(np.uint8)
        return tensors, said_by(method), "mxfp4", numbers

    return case


def nvfp4_parts(shape=(48, 96), *, divided):
    """Codes, scales of 16, the last scale, and the numbers."""
    W = weights(shape)
    whole = np.float32(np.abs(W).max() / (6 * 448))
    largest = np.abs(W).reshape(*shape[:-1], -1, 16).max(axis=-1)
    blocks = (largest / (6 * whole)).astype(ml_dtypes.float8_e4m3fn)
    last = np.float32(1) / whole if divided else whole
    scales = blocks.astype(np.float32)
    packed, numbers = as_float4(W, 16, scales / last if divided else scales * last)
    return packed, blocks, last, numbers


def compressed_tensors_nvfp4():
    packed, scales, last, numbers = nvfp4_parts(divided=True)
    tensors = {"l.weight_packed": packed, "l.weight_scale": scales, "l.weight_global_scale": last.reshape(1)}
    tensors["l.input_global_scale"] = np.ones(1, np.float32)
    return tensors, said_by("compressed-tensors"), "nvfp4", numbers


def modelopt_nvfp4():
    packed, scales, last, numbers = nvfp4_parts(divided=False)
    tensors = {"l.weight": packed, "l.weight_scale": scales, "l.weight_scale_2": np.array(last)}
    return tensors | {"l.input_scale": np.ones((), np.float32)}, said_by("modelopt"), "nvfp4", numbers


def kernels_nvfp4():
    """As the kernels of transformers keep a weight: scales in bytes, twice, four of the second kind in an integer."""
    packed, scales, last, numbers = nvfp4_parts((144, 96), divided=True)
    tensors = {"l.weight": packed, "l.weight_sf_rowmajor": scales.view(np.uint8)}
    tensors["l.weight_sf"] = in_tiles(scales).view(np.int32)
    return tensors | {"l.weight_global_scale": last.reshape(1)}, said_by("nvfp4"), "nvfp4", numbers


def in_tiles(scales):
    """In the order of tensor cores: tiles of 128 rows and 4 columns, each by its rows modulo 32."""
    rows, columns = scales.shape
    down, across = -(-rows // 128), -(-columns // 4)
    tiles = np.zeros(down * across * 512, scales.dtype)
    for row, column in np.ndindex(rows, columns):
        tile = row // 128 * across + column // 4
        tiles[512 * tile + 16 * (row % 32) + 4 * (row % 128 // 32) + column % 4] = scales[row, column]
    return tiles.reshape(down * 128, across * 4)


def said_of_comfy(format):
    return {"l.comfy_quant": np.frombuffer(json.dumps({"format": format}).encode(), np.uint8)}


def comfy_nvfp4():
    packed, scales, last, numbers = nvfp4_parts((144, 96), divided=False)
    tensors = {"l.weight": packed >> 4 | packed << 4, "l.weight_scale": in_tiles(scales)}
    return tensors | {"l.weight_scale_2": np.array(last)} | said_of_comfy("nvfp4"), None, "nvfp4", numbers


def comfy_mxfp8(header):
    def case():
        codes, scales, numbers = as_float8(weights((144, 96)), (1, 32), powers=True)
        tensors = {"l.weight": codes, "l.weight_scale": in_tiles(exponents(scales).view(np.uint8))}
        if header:
            said = {"_quantization_metadata": json.dumps({"layers": {"l": {"format": "mxfp8"}}})}
            return tensors, {"metadata": said}, "mxfp8", numbers
        return tensors | said_of_comfy("mxfp8"), None, "mxfp8", numbers

    return case


CASES = {
    "block float8": block_float8,
    "a scalar": scalar(()),
    "a scalar of one dimension": scalar((1,)),
    "exponents": ue8m0_bytes,
    "DeepSeek-V4": deepseek_v4,
    "float8 per channel": per_channel,
    "blocks of 32 x 32": small_blocks,
    "a stack of experts": stack_of_experts,
    "compressed-tensors, one scale": compressed_tensors_tensor,
    "compressed-tensors, by channel": compressed_tensors_channel,
    "compressed-tensors, by block": compressed_tensors_block,
    "scales of a cache": with_a_cache,
    "ModelOpt float8": modelopt_float8,
    "FBGEMM": fbgemm,
    "experts of FBGEMM": fbgemm_experts,
    "ComfyUI": comfy("scale_weight", "scale_input"),
    "ComfyUI, E5M2": comfy("scale_weight", "scale_input", dtype=ml_dtypes.float8_e5m2),
    "ComfyUI, said beside": comfy("weight_scale", "input_scale", beside=True),
    "ComfyUI, said in the header": comfy("weight_scale", "input_scale", header=True),
    "MXFP8": mxfp8(exponents),
    "MXFP8 in bytes": mxfp8(lambda scales: exponents(scales).view(np.uint8)),
    "gpt-oss": gpt_oss("model.layers.0.mlp.experts.gate_up_proj", "_"),
    "gpt-oss by OpenAI's names": gpt_oss("block.0.mlp.mlp1_weight", "."),
    "compressed-tensors MXFP4": rows_of_mxfp4("weight_packed", "weight_scale", "compressed-tensors"),
    "experts of DeepSeek-V4": rows_of_mxfp4("weight", "scale", "fp8", np.int8),
    "compressed-tensors NVFP4": compressed_tensors_nvfp4,
    "ModelOpt NVFP4": modelopt_nvfp4,
    "transformers' NVFP4": kernels_nvfp4,
    "ComfyUI NVFP4": comfy_nvfp4,
    "ComfyUI MXFP8": comfy_mxfp8(False),
    "ComfyUI MXFP8, said in the header": comfy_mxfp8(True),
}
