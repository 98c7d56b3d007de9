"""One function per reader that takes hostile bytes; whatever it raises is a finding. Needs no fuzzer."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import struct
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import mpfast
from mpfast.arrays import QuantisedArray, as_matrix
from mpfast.arrays.array_interfaces import CudaRecord
from mpfast.checkpoints import (
    AdapterProducts,
    dense_copy,
    open_checkpoint,
    reason_against_masking,
    select_layers,
    stored_chunks,
)
from mpfast.checkpoints.quantised import masked_codes
from mpfast.checkpoints.safetensors import stored_bytes
from mpfast.models import Analysis, Budget, LayerBudget, verify
from mpfast.models.layer_json import layer_from_json, layer_to_json
from mpfast.support import CheckpointError, InvalidValueError

from .structure import Bytes, altered, archive, gguf, json_bytes, npy, patched, safetensors

MODERATE = 1 << 20


class Folder:
    """A directory of hostile files, emptied for every input."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="mpfast-fuzz-"))

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def read_all(path: Path) -> None:
    """Open a checkpoint and read its tensors: it works, or the file is refused."""
    try:
        checkpoint = open_checkpoint(path)
    except (CheckpointError, MemoryError):
        return
    assert len({info.name for info in checkpoint.tensors}) == len(checkpoint.tensors)
    for info in checkpoint.tensors[:8]:
        checkpoint.prefetch(info.name)
        try:
            found = checkpoint.read(info.name)
        except (CheckpointError, MemoryError):
            continue
        assert tuple(found.shape) == info.shape
        if isinstance(found, np.ndarray) and 0 < found.size < MODERATE:
            found.tobytes()
        if isinstance(found, QuantisedArray) and found.size < MODERATE:
            with contextlib.suppress(CheckpointError):  # of parts that are damaged inside
                assert np.asarray(found).shape == info.shape
                found.rounding()
        checkpoint.release(info.name)


def _file(name: str, content: bytes) -> None:
    with Folder() as folder:
        (folder / name).write_bytes(content)
        read_all(folder / name)


def fuzz_npy(content: bytes) -> None:
    data = Bytes(content)
    _file("w.npy", npy(data) if data.byte() % 2 else data.rest())


def fuzz_npz(content: bytes) -> None:
    data = Bytes(content)
    if data.byte() % 2 == 0:
        return _file("w.npz", data.rest())
    members = [(data.text() + ".npy", npy(data)) for _ in range(data.byte() % 3)]
    return _file("w.npz", archive(members, data))


def _header(dtype: str = "F32", shape: tuple[int, ...] = (2, 3), begin: int = 0, end: int = 24) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def fuzz_safetensors(content: bytes) -> None:
    data = Bytes(content)
    if data.byte() % 2 == 0:
        return _file("w.safetensors", data.rest())
    document = {"__metadata__": {"format": "pt"}, "w": _header(), "b": _header("BF16", (4,), 24, 32)}
    return _file("w.safetensors", safetensors(altered(document, data), bytes(32), data))


# Names of the parts of quantised weights, types of codes and scales, and extents that fit each other by chance.
_WORDS = (
    *("weight", "weight_packed", "experts.up_proj", "experts.up_proj_blocks", "experts.up_proj_scales", "comfy_quant"),
    *("weight_scale_inv", "weight_scale", "scale", "scale_weight", "weight_scale_2", "weight_global_scale"),
    *("experts.up_proj_scale_inv", "input_scale", "pre_quant_scale", "bias", "qweight", "qzeros", "scales", "g_idx"),
    *("weight_shape", "weight_zero_point", "biases", "weight.absmax", "weight.quant_map", "SCB"),
    *("weight_g_idx", "weight.nested_absmax", "weight.nested_quant_map", "qbiases", "weight_format"),
)
_KINDS = {
    **dict.fromkeys(("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("F16", "BF16"), 2),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    "I64": 8,
}
_EXTENTS = (0, 1, 2, 3, 4, 8, 16, 32, 33, 64, 128, 129, 256)
_METHODS = (
    *("fp8", "mxfp4", "mxfp8", "compressed-tensors", "modelopt", "gptq", "awq", "bitsandbytes", "new", None, 7),
    *("auto-round", "metal", "affine", "torchao"),
)
# What else configurations say, and what the header of a file says of a tensor.
_SAID: dict[str, Any] = {
    "packing_format": "auto_round:auto_gptq",
    "config_groups": {"a": {"weights": {"num_bits": 4, "symmetric": False, "block_structure": [8, 32]}}},
}
_CLASSES: tuple[dict[str, Any], ...] = (
    {"_type": "Int8Tensor", "_data": {"block_size": [1, 32], "target_dtype": {"_data": "int4"}}},
    {"_type": "Int4Tensor", "_data": {"block_size": [1, 32]}},
    {
        "_type": "MXTensor",
        "_data": {"block_size": 32, "elem_dtype": {"_data": "float4_e2m1fn_x2"}, "is_swizzled_scales": True},
    },
    {
        "_type": "NVFP4Tensor",
        "_data": {"block_size": 16, "is_swizzled_scales": False},
        "_tensor_data_names": ["qdata", "scale", "per_tensor_scale"],
    },
)
_STATE = {"quant_type": "nf4", "blocksize": 64, "shape": [8, 64], "nested_blocksize": 256, "nested_offset": 0.5}
_STATE_WORD = "weight.quant_state.bitsandbytes__nf4"
# Parts that fit each other, of which some are then changed: word, type, shape.
_FITTING = (
    (("weight", "F8_E4M3", (129, 64)), ("weight_scale_inv", "F32", (2, 1))),
    (("weight", "F8_E5M2", (32, 64)), ("weight_scale", "U8", (32, 2))),
    (("weight", "I8", (8, 32)), ("scale", "F8_E8M0", (8, 2))),
    (("experts.up_proj_blocks", "U8", (2, 8, 2, 16)), ("experts.up_proj_scales", "U8", (2, 8, 2))),
    (("weight_packed", "U8", (8, 32)), ("weight_scale", "F8_E4M3", (8, 4)), ("weight_global_scale", "F32", (1,))),
    (("weight", "U8", (8, 32)), ("weight_scale", "F8_E4M3", (8, 4)), ("weight_scale_2", "F32", ())),
    (("experts.up_proj", "F8_E4M3", (2, 64, 32)), ("experts.up_proj_scale_inv", "BF16", (2, 1, 1))),
    (("qweight", "I32", (8, 32)), ("qzeros", "I32", (2, 4)), ("scales", "F16", (2, 32)), ("g_idx", "I32", (64,))),
    (("qweight", "I32", (64, 4)), ("qzeros", "I32", (2, 4)), ("scales", "F16", (2, 32))),
    (
        *(("weight_packed", "I32", (8, 8)), ("weight_scale", "F32", (8, 2)), ("weight_shape", "I64", (2,))),
        *(("weight_zero_point", "I32", (1, 2)), ("weight_g_idx", "I32", (64,))),
    ),
    (("weight", "I8", (8, 64)), ("weight_scale", "F32", (1, 2)), ("weight_zero_point", "I8", (1, 2))),
    (
        *(("weight", "U8", (256, 1)), ("weight.absmax", "U8", (8,)), ("weight.quant_map", "F32", (16,))),
        *(("weight.nested_absmax", "F32", (1,)), ("weight.nested_quant_map", "F32", (256,))),
        (_STATE_WORD, "U8", (len(json.dumps(_STATE)),)),
    ),
    (("weight", "I8", (8, 64)), ("SCB", "F32", (8,)), ("weight_format", "U8", ())),
    (("weight", "U32", (8, 8)), ("scales", "F16", (8, 2)), ("biases", "F16", (8, 2))),
    (("_weight_qdata", "I8", (8, 64)), ("_weight_scale", "F32", (8, 2)), ("_weight_zero_point", "I8", (8, 2))),
    (("_weight_qdata", "I8", (8, 32)), ("_weight_scale", "BF16", (2, 8)), ("_weight_zero_point", "BF16", (2, 8))),
    (("_weight_qdata", "U8", (8, 32)), ("_weight_scale", "F8_E8M0", (32, 16))),
    (("_weight_qdata", "U8", (8, 32)), ("_weight_scale", "F8_E4M3", (8, 4)), ("_weight_per_tensor_scale", "F32", ())),
    (("weight", "U8", (8, 32)), ("weight_scale", "F8_E4M3", (128, 4)), ("weight_scale_2", "F32", ())),
    (("weight", "F8_E4M3", (8, 64)), ("weight_scale", "U8", (128, 4))),
)


def _tiled(parts: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[dict[str, Any], int]:
    """A header in which the tensors follow each other, and the bytes that they take."""
    header: dict[str, Any] = {}
    at = 0
    for word, kind, shape in parts:
        end = at + _KINDS[kind] * math.prod(shape)
        if f"l.{word}" not in header and end < MODERATE:
            header[f"l.{word}"] = _header(kind, shape, at, end)
            at = end
    return header, at


def _told(header: dict[str, Any], content: bytes, data: Bytes) -> bytes:
    """The content with parts that say something of the others: most often what is true, or nearly."""
    changed = bytearray(content)
    said = {"l.weight_shape": np.array([8, 64]).tobytes(), f"l.{_STATE_WORD}": json_bytes(altered(_STATE, data), data)}
    for name, text in said.items():
        if name in header and data.byte() % 8:
            begin, end = header[name]["data_offsets"]
            changed[begin:end] = text[: end - begin].ljust(end - begin)
    return bytes(changed)


def fuzz_quantised(content: bytes) -> None:
    data = Bytes(content)
    parts = list(data.choose(_FITTING))
    for _ in range(data.byte() % 4):
        at = data.byte() % (len(parts) + 1)
        word, kind, shape = parts.pop(at) if at < len(parts) else ("weight", "U8", (8, 32))
        change = data.byte() % 5
        word = data.choose(_WORDS) if change == 0 else word
        kind = data.choose(tuple(_KINDS)) if change == 1 else kind
        if change == 2:
            shape = tuple(data.choose(_EXTENTS) for _ in range(data.byte() % 5))
        elif change == 3 and shape:
            shape = (*shape[:-1], data.choose(_EXTENTS))
        if change < 4:
            parts.insert(at, (word, kind, shape))
    header, size = _tiled(parts)
    said = {"format": data.choose(("float8_e4m3fn", "nvfp4", "x", "mxfp8"))}
    if data.byte() > 200:
        metadata = {
            "_quantization_metadata": json_bytes(altered({"layers": {"l": said}}, data), data).decode("latin-1")
        }
        header["__metadata__"] = metadata
    if "l._weight_qdata" in header:
        header["__metadata__"] = {"l.weight": json_bytes(altered(data.choose(_CLASSES), data), data).decode("latin-1")}
    quantisation = {"quant_method": data.choose(_METHODS), "weight_block_size": [128, data.choose((128, 0, -1, 64))]}
    quantisation |= _SAID | {"bits": data.choose((4, 4, 8, 3, 0, -1)), "group_size": data.choose((32, 32, -1, 0, 64))}
    key = data.choose(("quantization_config", "quantization_config", "quantization"))
    config = {"model_type": data.choose(("gpt_oss", "deepseek_v3", "x")), key: quantisation}
    with Folder() as folder:
        if data.byte() % 4:
            (folder / "config.json").write_bytes(json_bytes(altered(config, data), data))
        written = altered(header, data) if data.byte() > 220 else header
        repeated = (data.take(16) or b"\x38") * (size // 16 + 16)
        (folder / "model.safetensors").write_bytes(safetensors(written, _told(header, repeated[:size], data), data))
        read_all(folder)
        with contextlib.suppress(CheckpointError, MemoryError, InvalidValueError):
            checkpoint = open_checkpoint(folder)
            select_layers(checkpoint, None, None)
            _mask(checkpoint)
            dense = dense_copy(checkpoint, "bfloat16")
            for info in dense.tensors:
                assert sum(chunk.nbytes for chunk in stored_chunks(dense, info.name)) == stored_bytes(info)


def _mask(checkpoint: Any) -> None:
    """Drop every second entry of the weights that can be masked in their own format."""
    for weight in getattr(checkpoint, "weights", {}).values():
        if not reason_against_masking(weight):
            keep = np.arange(math.prod(weight.decoder.shape)) % 2 == 0
            with contextlib.suppress(InvalidValueError):
                written = sum(chunk.nbytes for chunk in masked_codes(weight, keep))
                assert written == stored_bytes(weight.group.info)


def fuzz_sharded(content: bytes) -> None:
    data = Bytes(content)
    with Folder() as folder:
        for file, name in (("a.safetensors", "w"), ("b.safetensors", data.choose(("v", "v", "v", "w")))):
            header = {name: _header()}
            (folder / file).write_bytes(
                safetensors(altered(header, data) if data.byte() > 200 else header, bytes(24), data)
            )
        index = {"metadata": {"total_size": 48}, "weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}
        text = json_bytes(altered(index, data), data) if data.byte() % 4 else data.rest()
        (folder / "m.safetensors.index.json").write_bytes(text)
        read_all(folder)
        read_all(folder / "m.safetensors.index.json")


def fuzz_distributed(content: bytes) -> None:
    data = Bytes(content)
    with Folder() as folder:
        for file, begin in (("a.safetensors", 0), ("b.safetensors", data.choose((2, 2, 2, 0, 3)))):
            places = altered({"w": {"saved_offsets": [begin, 0]}, "b": {"saved_offsets": [4]}}, data)
            text = json_bytes(places, data).decode("utf-8", "replace") if data.byte() % 8 else data.text()
            header = {"__metadata__": {"DCP_SHARDING_INFO": text}, "w": _header()}
            header = altered(header, data) if data.byte() > 200 else header
            (folder / file).write_bytes(safetensors(header, bytes(24), data))
        read_all(folder)
        read_all(folder / "a.safetensors")


_PAIRS = {
    "base_model.model.q.lora_A.weight": (4, 6),
    "base_model.model.q.lora_B.weight": (5, 4),
    "base_model.model.experts.lora_A.weight": (4, 6),
    "base_model.model.experts.lora_B.weight": (5, 4),
    "transformer.k.lora_A.weight": (4, 6),
    "transformer.k.lora_B.weight": (5, 4),
    "transformer.k.alpha": (),
    "v.hada_w1_a": (5, 2),
    "v.hada_w1_b": (2, 6),
    "v.hada_w2_a": (5, 2),
    "v.hada_w2_b": (2, 6),
    "o.lokr_w1": (2, 3),
    "o.lokr_w2_a": (4, 2),
    "o.lokr_w2_b": (2, 3),
}


def fuzz_adapters(content: bytes) -> None:
    data = Bytes(content)
    settings = {"r": 2, "lora_alpha": 4, "use_rslora": False, "init_lora_weights": True}
    settings |= {"rank_pattern": {"q": 4}, "alpha_pattern": {}, "target_parameters": ["experts.w"]}
    noted = {f"transformer.{key}": value for key, value in settings.items()}
    text = json_bytes(altered(noted, data), data).decode("utf-8", "replace") if data.byte() % 8 else data.text()
    header: dict[str, Any] = {"__metadata__": {"lora_adapter_metadata": text, "ss_network_dim": "4"}}
    end = 0
    for name, shape in _PAIRS.items():
        extents = tuple(data.choose((1, 2, 4, 6)) if data.byte() > 240 else extent for extent in shape)
        begin, end = end, end + 4 * int(np.prod(extents))
        header[name] = _header(data.choose(("F32",) * 7 + ("I32",)), extents, begin, end)
    entries = (
        np.frombuffer(data.rest().ljust(end, b"?")[:end], "<f4") if data.byte() % 4 == 3 else np.ones(end // 4, "<f4")
    )
    with Folder() as folder:
        (folder / "adapter_model.safetensors").write_bytes(safetensors(header, entries.tobytes(), data))
        if data.byte() % 4:
            (folder / "adapter_config.json").write_bytes(json_bytes(altered(settings, data), data))
        with contextlib.suppress(CheckpointError):
            view = AdapterProducts(open_checkpoint(folder))
            for info in view.tensors:
                found = view.read(info.name)
                assert tuple(found.shape) == info.shape
                with contextlib.suppress(ValueError):
                    getattr(found, "singular_values", list)()
        with Folder() as place, contextlib.suppress(ValueError):
            mpfast.resize(folder, place / "out" if data.byte() % 4 == 3 else None, rank=1)


@lru_cache
def _torch_parts() -> tuple[bytes, bytes, dict[str, bytes]]:
    """A state dictionary as a file, in the old format, and as the members of the archive."""
    import io
    import zipfile

    import torch

    state = {"w": torch.ones(4, 6), "b": torch.ones(3, dtype=torch.bfloat16), "n": {"t": torch.zeros(2, 2).t()}}
    new, old = io.BytesIO(), io.BytesIO()
    torch.save(state, new)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(new) as packed:
        return new.getvalue(), old.getvalue(), {name: packed.read(name) for name in packed.namelist()}


def fuzz_torch(content: bytes) -> None:
    data = Bytes(content)
    new, old, members = _torch_parts()
    mode = data.byte() % 5
    if mode == 0:
        return _file("w.pt", data.rest())
    if mode == 1:
        return _file("w.pt", patched(old, data))
    if mode == 2:
        return _file("w.pt", patched(new, data))
    pickled = next(name for name in members if name.endswith("data.pkl"))
    parts = dict(members)
    parts[pickled] = patched(parts[pickled], data) if mode == 3 else data.rest()
    return _file("w.pt", archive(list(parts.items()), Bytes(b"")))


def fuzz_torch_index(content: bytes) -> None:
    data = Bytes(content)
    with Folder() as folder:
        for file in ("p-1.bin", "p-2.bin"):
            (folder / file).write_bytes(_torch_parts()[0])
        index = {"weight_map": {"w": "p-1.bin", "b": data.choose(("p-1.bin", "p-1.bin", "p-2.bin"))}}
        text = json_bytes(altered(index, data), data) if data.byte() % 4 else data.rest()
        (folder / "pytorch_model.bin.index.json").write_bytes(text)
        read_all(folder)


def fuzz_onnx(content: bytes) -> None:
    import onnx

    data = Bytes(content)
    if data.byte() % 2 == 0:
        return _file("w.onnx", data.rest())
    tensors = []
    for _ in range(data.byte() % 3):
        tensor = onnx.TensorProto(name=data.choose(("w", "v")), data_type=data.byte() % 32 if data.left() else 1)
        tensor.dims.extend(n for n in data.numbers() if -(2**63) <= n < 2**63)
        kind = data.byte() % 4
        if kind == 0:
            tensor.raw_data = bytes(data.choose((0, 4, 24, 48)))
        elif kind == 1:
            tensor.float_data.extend([1.0] * (data.byte() % 30))
        elif kind == 2:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key in ("location", "offset", "length"):
                value = data.choose(("w.bin", "0", "24", "-1", "x", "", str(2**63), "../w.bin", "9" * 5000, None))
                if value is not None:
                    tensor.external_data.add(key=key, value=value)
        else:
            tensor.int32_data.extend([data.byte()] * (data.byte() % 30))
        tensors.append(tensor)
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors))
    with Folder() as folder:
        (folder / "w.bin").write_bytes(bytes(64))
        (folder / "w.onnx").write_bytes(patched(model.SerializeToString(), data))
        read_all(folder / "w.onnx")
    return None


# Names, dimensions and types of tensors that fit each other: F32, Q4_0, Q8_0, F16, BF16, Q4_K, MXFP4, I8.
_BLOCKS = ((0, 4, 1), (2, 18, 32), (8, 34, 32), (1, 2, 1), (30, 2, 1), (12, 144, 256), (39, 17, 32), (24, 1, 1))
_GGUF_NAMES = ("blk.0.attn_q.weight", "blk.0.attn_qkv.weight", "blk.0.ffn_up_exps.weight", "output.weight", "w" * 65)


def fuzz_gguf(content: bytes) -> None:
    data = Bytes(content)
    if data.byte() % 4 == 0:
        return _file("w.gguf", b"GGUF" + data.rest())
    numbers = (struct.pack("<II", 4, 32), struct.pack("<II", 4, data.number() % 2**32), data.take(16))
    names = ("general.alignment", "general.file_type", "split.count", "llama.attention.head_count", data.text())
    settings = [(name, data.choose(numbers)) for name in names if data.byte() % 2]
    tensors = []
    for name in _GGUF_NAMES[: 1 + data.byte() % len(_GGUF_NAMES)]:
        kind, width, entries = data.choose(_BLOCKS)
        sizes = [data.choose((256, 256, 32, 64, 33, 0)), *(data.choose((8, 1, 0, 16)) for _ in range(data.byte() % 4))]
        if data.byte() > 230:
            sizes = data.numbers()
        stored = data.take(16).ljust(16, b"\x3c") * (abs(math.prod(sizes)) % MODERATE * width // entries // 16 + 16)
        tensors.append((data.text() if data.byte() > 230 else name, sizes, kind, stored))
    written = gguf(settings, tensors, data)
    with Folder() as folder:
        (folder / "w.gguf").write_bytes(patched(written, data) if data.byte() > 128 else written)
        read_all(folder / "w.gguf")
        with contextlib.suppress(CheckpointError, InvalidValueError):
            mpfast.quantize(folder / "w.gguf", folder / "out", format=data.choose(("Q4_0", "Q8_0")))
    return None


@lru_cache
def _report_documents() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    W = np.random.default_rng(0).standard_normal((12, 20))
    analysis = mpfast.analyze({"a.weight": W, "b.bias": W[0]}, progress=False)
    texts = (analysis.to_json(), analysis.budget(0.5).to_json(), layer_to_json(analysis.layers[0]))
    first, second, third = (json.loads(text) for text in texts)
    return first, second, third


def fuzz_reports(content: bytes) -> None:
    data = Bytes(content)
    kind = data.byte() % 3
    document = altered(_report_documents()[kind], data)
    text = json_bytes(document, data) if data.byte() % 4 else data.rest()
    with Folder() as folder:
        path = folder / "report.json"
        path.write_bytes(text)
        try:
            if kind == 0:
                Analysis.from_json(path).to_json()
            elif kind == 1:
                Budget.from_json(path).to_json()
            else:
                layer_to_json(layer_from_json(text.decode("utf-8")))
        except ValueError:
            pass


def fuzz_pruned(content: bytes) -> None:
    data = Bytes(content)
    keep = np.array([[True, False, True, False]] * 2)
    row = LayerBudget("w", "linear", (2, 4), "float32", 4, 0.5, 1.0, 0.0, 0, None)
    with Folder() as folder:
        budget = json.loads(Budget((row,), "uniform", 0.5, data.choose((None, "2:4")), "nowhere").to_json())
        (folder / "budget.json").write_bytes(json_bytes(altered(budget, data), data))
        shapes = json_bytes(altered({"w": [2, 4]}, data), data).decode("utf-8", "replace")
        masks = {"__metadata__": {"format": "mpfast.masks/1", "shapes": shapes}, "w": _header("U8", (1,), 0, 1)}
        packed = np.packbits(keep.reshape(-1), bitorder="little").tobytes() if data.byte() % 8 else b"\xff"
        written = altered(masks, data) if data.byte() > 200 else masks
        (folder / "masks.safetensors").write_bytes(safetensors(written, packed, data))
        weights = {"w": _header(data.choose(("F32", "F32", "I32", "C64")), (2, 4), 0, 32)}
        weights = altered(weights, data) if data.byte() > 200 else weights
        (folder / "model.safetensors").write_bytes(safetensors(weights, keep.astype("<f4").tobytes(), data))
        with contextlib.suppress(CheckpointError, MemoryError):
            verify(folder, folder / "model.safetensors" if data.byte() % 2 else None)


class _Foreign:
    """An object that is what its attributes say."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.__dict__.update(attributes)


def _interface(data: Bytes) -> tuple[Any, bool]:
    """An interface, and whether its entries lie in a buffer, so that reading them harms nobody."""
    typestr = data.choose(("<f4", "<f8", "<f2", ">f4", "<i4", "|V2", "|V0", "<f3", "f", 4, None, "<U9", "|O8"))
    interface = {"version": 3, "typestr": typestr, "shape": tuple(data.numbers())}
    if data.byte() % 2:
        interface["strides"] = tuple(data.number() * data.choose((1, 2, 4, 8, -4)) for _ in interface["shape"])
    source = data.byte() % 5
    if source < 3:
        interface["data"] = (bytes(96), bytearray(640), memoryview(bytes(64))[::2])[source]
    elif source == 3:
        interface["data"] = (data.number(), False)
    if data.byte() % 4 == 3:
        interface["offset"] = data.number()
    if data.byte() > 200:
        interface[data.choose(("shape", "strides", "data", "stream", "mask", "typestr"))] = data.value()
    return (data.value() if data.byte() > 240 else interface), not isinstance(interface.get("data"), tuple)


def _raising(error: type[BaseException]) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error("from abroad")

    return call


def fuzz_arrays(content: bytes) -> None:
    data = Bytes(content)
    kind = data.byte() % 4
    try:
        if kind == 3:
            CudaRecord.of(_Foreign({"__cuda_array_interface__": _interface(data)[0]}), "W")
            return
        if kind == 2:
            error = data.choose((ValueError, RuntimeError, KeyError, AttributeError, ZeroDivisionError, RecursionError))
            name = data.choose(("__array__", "__dlpack__", "__dlpack_device__", "__array_interface__"))
            as_matrix(
                type("Raising", (), {name: property(_raising(error)) if data.byte() % 2 else _raising(error)})(),
            )
            return
        interface, in_buffer = _interface(data)
        W = _Foreign({"__array_interface__": interface})
        matrix = as_matrix(W)
        if in_buffer and matrix.shape[0] * matrix.shape[1] < 10_000:
            mpfast.gram_product(matrix, np.ones((matrix.shape[1], 1)))
    except (TypeError, ValueError, MemoryError):
        pass


TARGETS: dict[str, Callable[[bytes], None]] = {
    name.removeprefix("fuzz_"): function for name, function in list(globals().items()) if name.startswith("fuzz_")
}
NEEDS = {"gguf": "gguf", "torch": "torch", "torch_index": "torch", "onnx": "onnx"}


def run_target(name: str, content: bytes) -> None:
    """Run one input; warnings of NumPy and Python about odd files are no findings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TARGETS[name](content)
