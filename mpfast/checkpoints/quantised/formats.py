"""The formats of quantised weights that are read, and which one a weight is in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mpfast.arrays import Decoder
from mpfast.checkpoints.base import Role
from mpfast.checkpoints.quantised import (
    awq,
    bitsandbytes,
    comfy,
    compressed_tensors,
    float4,
    float8,
    gptq,
    mlx,
    onnx_nodes,
    torchao,
)
from mpfast.checkpoints.quantised.group import Group, NotDecodedError
from mpfast.support import short

__all__ = ["QUANTISED_FORMATS", "QuantisedFormat", "format_of"]


@dataclass(frozen=True)
class QuantisedFormat:
    """A format of quantised weights.

    Attributes
    ----------
    description : str
        What it is, in a few words.
    methods : frozenset of str or None
        What the configuration calls the methods that store weights so, in lower case; None where the parts say that
        they are, whatever it says.
    recognises : function
        Whether the words and types of the parts are those of the format. Where the configuration names no method, they
        alone decide; what is missing or does not fit is for the decoder to say.
    decoder : function
        What the numbers come out by; raises NotDecodedError where a part is missing or does not fit. No code is read.
    role : function, optional
        What a weight of this shape is to its model, where the format tells more than names and configuration do.
    transposed : function, optional
        Whether the model without quantisation stores the transposes of the matrices.
    """

    description: str
    methods: frozenset[str] | None
    recognises: Callable[[Group], bool]
    decoder: Callable[[Group], Decoder]
    role: Callable[[Group, tuple[int, ...]], Role | None] = lambda group, shape: None
    transposed: Callable[[Group], bool] = lambda group: False


#: Every format, once. The first one that recognises a weight has it.
QUANTISED_FORMATS = (
    QuantisedFormat("NVFP4 and MXFP8 of ComfyUI", None, comfy.is_tensor_core, comfy.tensor_core),
    QuantisedFormat(
        "float8 with a scale for the matrix, each row or each block", float8.METHODS, float8.is_float8, float8.decoder
    ),
    QuantisedFormat(
        "MXFP4 in blocks (gpt-oss)",
        float4.GPT_OSS_METHODS,
        float4.is_blocks,
        float4.gpt_oss_mxfp4,
        float4.stack_role,
        float4.is_transposed,
    ),
    QuantisedFormat(
        "MXFP4 in rows (compressed-tensors, DeepSeek-V4)", float4.MXFP4_METHODS, float4.is_mxfp4, float4.mxfp4
    ),
    QuantisedFormat("NVFP4 (compressed-tensors, ModelOpt)", float4.NVFP4_METHODS, float4.is_nvfp4, float4.nvfp4),
    QuantisedFormat("GPTQ, versions 1 and 2 (AutoRound, too)", gptq.METHODS, gptq.is_gptq, gptq.decoder),
    QuantisedFormat("AWQ, version gemm (AutoRound, too)", awq.METHODS, awq.is_awq, awq.decoder),
    QuantisedFormat(
        "packed integers of compressed-tensors",
        compressed_tensors.METHODS,
        compressed_tensors.is_packed,
        compressed_tensors.decoder_of_packs,
    ),
    QuantisedFormat(
        "integers of compressed-tensors, one for each entry",
        compressed_tensors.METHODS,
        compressed_tensors.is_stored,
        compressed_tensors.decoder_of_stored,
    ),
    QuantisedFormat(
        "NF4 and FP4 of bitsandbytes", bitsandbytes.METHODS, bitsandbytes.is_four_bits, bitsandbytes.four_bits
    ),
    QuantisedFormat("int8 of bitsandbytes", bitsandbytes.METHODS, bitsandbytes.is_int8, bitsandbytes.int8),
    QuantisedFormat("MLX and transformers' metal, all modes", mlx.METHODS, mlx.is_mlx, mlx.decoder),
    QuantisedFormat(
        "torchao in safetensors, float8, MX, NVFP4 and integers", torchao.METHODS, torchao.is_torchao, torchao.decoder
    ),
    QuantisedFormat(
        "ONNX, weights that DequantizeLinear takes",
        onnx_nodes.METHODS,
        onnx_nodes.is_dequantize_linear,
        onnx_nodes.dequantize_linear,
    ),
    QuantisedFormat(
        "ONNX, weights that MatMulNBits takes",
        onnx_nodes.METHODS,
        onnx_nodes.is_mat_mul_n_bits,
        onnx_nodes.mat_mul_n_bits,
        onnx_nodes.role_of,
    ),
)


def format_of(group: Group) -> QuantisedFormat:
    """Return the format that a quantised weight is in; NotDecodedError where it is in none of the list."""
    method = group.method.lower()
    for format in QUANTISED_FORMATS:
        if (not method or format.methods is None or method in format.methods) and format.recognises(group):
            comfy.check_comfy(group)
            return format
    if not method:
        beside = ", ".join(sorted(word for word in group.parts if word != group.codes)) or "nothing"
        fact = f"is {group.info.dtype} with {short(beside)} beside it"
        raise NotDecodedError(f"{fact}, in a format that is not known: no configuration names one")
    raise NotDecodedError(f"is {group.info.dtype} in a format that is not read")
