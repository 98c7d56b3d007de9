"""One function per reader that takes hostile bytes; whatever it raises is a finding. Needs no fuzzer."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

import mpfast
from mpfast.arrays import as_matrix
from mpfast.arrays.array_interfaces import CudaRecord
from mpfast.checkpoints import (
    AdapterProducts,
    open_checkpoint,
)
from mpfast.models import Analysis, Budget, LayerBudget, verify
from mpfast.models.layer_json import layer_from_json, layer_to_json
from mpfast.support import CheckpointError

from .gguf_files import fuzz_gguf
from .hostile_files import Folder, header_of, read_all
from .quantised import fuzz_quantised
from .structure import Bytes, altered, archive, json_bytes, npy, patched, safetensors


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


def fuzz_safetensors(content: bytes) -> None:
    data = Bytes(content)
    if data.byte() % 2 == 0:
        return _file("w.safetensors", data.rest())
    document = {"__metadata__": {"format": "pt"}, "w": header_of(), "b": header_of("BF16", (4,), 24, 32)}
    return _file("w.safetensors", safetensors(altered(document, data), bytes(32), data))


def fuzz_sharded(content: bytes) -> None:
    data = Bytes(content)
    with Folder() as folder:
        for file, name in (("a.safetensors", "w"), ("b.safetensors", data.choose(("v", "v", "v", "w")))):
            header = {name: header_of()}
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
            header = {"__metadata__": {"DCP_SHARDING_INFO": text}, "w": header_of()}
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
        header[name] = header_of(data.choose(("F32",) * 7 + ("I32",)), extents, begin, end)
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
        masks = {"__metadata__": {"format": "mpfast.masks/1", "shapes": shapes}, "w": header_of("U8", (1,), 0, 1)}
        packed = np.packbits(keep.reshape(-1), bitorder="little").tobytes() if data.byte() % 8 else b"\xff"
        written = altered(masks, data) if data.byte() > 200 else masks
        (folder / "masks.safetensors").write_bytes(safetensors(written, packed, data))
        weights = {"w": header_of(data.choose(("F32", "F32", "I32", "C64")), (2, 4), 0, 32)}
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


_HERE = {name.removeprefix("fuzz_"): value for name, value in list(globals().items()) if name.startswith("fuzz_")}
TARGETS: dict[str, Callable[[bytes], None]] = {**_HERE, "gguf": fuzz_gguf, "quantised": fuzz_quantised}
NEEDS = {"gguf": "gguf", "torch": "torch", "torch_index": "torch", "onnx": "onnx"}


def run_target(name: str, content: bytes) -> None:
    """Run one input; warnings of NumPy and Python about odd files are no findings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TARGETS[name](content)
