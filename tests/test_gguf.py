"""GGUF files: read as the format says, against the gguf package; refused where they break it."""

import builtins
import struct

import numpy as np
import pytest

import mpfast
from mpfast.checkpoints import open_checkpoint, quantised_weight, roles_of, select_layers
from mpfast.checkpoints.gguf_header import BLOCKS
from mpfast.support import CheckpointError

gguf = pytest.importorskip("gguf")
quants = pytest.importorskip("gguf.quants")

Type = gguf.GGMLQuantizationType


@pytest.fixture
def write(tmp_path):
    """A function that writes tensors, given by name as an array or (array, type), and returns the path."""

    def written(tensors, **settings):
        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for key, value in settings.items():
            writer.add_uint32(key.replace("__", "."), value)
        for name, tensor in tensors.items():
            array, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
            if kind is None:
                writer.add_tensor(name, array)
            else:
                packed = array if array.dtype == np.uint8 else quants.quantize(array, kind)
                writer.add_tensor(name, packed, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return written


def weights(*shape):
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def test_every_type_of_the_list_has_the_blocks_of_the_package():
    for number, block in BLOCKS.items():
        if number in {kind.value for kind in Type}:
            assert (block.entries, block.bytes) == gguf.GGML_QUANT_SIZES[Type(number)], block.name
            assert block.name == Type(number).name


def test_plain_types_are_views_in_numpys_order_of_axes(write):
    W = weights(64, 96)
    tensors = {"a.weight": W, "b.weight": W.astype(np.float16), "i": np.arange(6, dtype=np.int32)}
    checkpoint = open_checkpoint(write({**tensors, "c.weight": (W, Type.BF16)}))
    for name, tensor in tensors.items():
        assert np.array_equal(checkpoint.read(name), tensor)
    bits = checkpoint.read("c.weight")
    assert {info.name: info.dtype for info in checkpoint.tensors}["c.weight"] == "bfloat16"
    np.testing.assert_array_equal(
        (bits.astype(np.uint32) << 16).view(np.float32),
        np.float32(quants.dequantize(quants.quantize(W, Type.BF16), Type.BF16)),
    )
    assert quantised_weight(checkpoint) is None


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"])
def test_blocks_are_decoded_as_the_package_does(write, kind):
    W = weights(3, 70, 64)
    path = write({"blk.0.ffn_up_exps.weight": (W, Type[kind]), "blk.0.attn_q.weight": (W[0], Type[kind])})
    checkpoint = open_checkpoint(path)
    packed = quants.quantize(W, Type[kind])
    found = checkpoint.read("blk.0.ffn_up_exps.weight")
    assert found.dtype == np.float32
    assert not found.flags.writeable
    assert np.array_equal(found, quants.dequantize(packed, Type[kind]))
    assert {info.stored for info in checkpoint.tensors} == {kind}


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_super_blocks_of_any_bytes_are_decoded(write, kind):
    block = BLOCKS[Type[kind].value]
    packed = np.random.default_rng(5).integers(0, 60, (16, 2 * block.bytes), dtype=np.uint8)
    checkpoint = open_checkpoint(write({"l.weight": (packed, Type[kind])}))
    np.testing.assert_array_equal(checkpoint.read("l.weight"), quants.dequantize(packed, Type[kind]))


def test_q4_0_by_hand(write):
    codes = np.arange(32) % 16
    packed = np.concatenate([np.float16([0.5]).view(np.uint8), codes[:16] | codes[16:] << 4]).astype(np.uint8)
    checkpoint = open_checkpoint(write({"l.weight": (np.tile(packed, (8, 1)), Type.Q4_0)}))
    assert np.array_equal(checkpoint.read("l.weight")[0], (codes - 8) * 0.5)


def test_the_edge_of_a_quantised_matrix_without_its_rounding(write):
    W = weights(512, 1024)
    checkpoint = open_checkpoint(write({"l.weight": (W, Type.Q4_1), "k.weight": W, "m.weight": (W, Type.Q4_0)}))
    dense, rounded = (mpfast.spectrum(checkpoint.read(name)) for name in ("k.weight", "l.weight"))
    corrected = mpfast.spectra.quantization_noise(rounded, checkpoint.rounding_variance("l.weight"))
    assert 0.003 < corrected.share < 0.05
    before = abs(rounded.edge.sigma_plus / dense.edge.sigma_plus - 1)
    assert abs(corrected.sigma_plus / dense.edge.sigma_plus - 1) < 0.5 * before
    assert checkpoint.rounding_variance("k.weight") == 0
    assert checkpoint.rounding_variance("m.weight") is None


def test_roles_by_the_names_of_the_format(write):
    path = write(
        {
            "token_embd.weight": (weights(128, 64), Type.Q8_0),
            "output.weight": (weights(128, 64), Type.Q8_0),
            "blk.0.attn_qkv.weight": (weights(128, 64), Type.Q8_0),
            "blk.0.ffn_gate_up_exps.weight": (weights(2, 64, 64), Type.Q8_0),
            "blk.0.ffn_norm.weight": weights(64),
        },
        llama__embedding_length=64,
        llama__attention__head_count=4,
        llama__attention__head_count_kv=2,
    )
    checkpoint = open_checkpoint(path)
    kinds = [role.kind for role in roles_of(checkpoint).values()]
    assert kinds == ["embedding", "head", "linear", "experts", "vector"]
    layers, skipped, _ = select_layers(checkpoint, None, None, mpfast.checkpoints.Views())
    assert {layer.name: layer.shape for layer in layers if "[" in layer.name} == {
        "blk.0.attn_qkv.weight[query]": (64, 64),
        "blk.0.attn_qkv.weight[key]": (32, 64),
        "blk.0.attn_qkv.weight[value]": (32, 64),
        "blk.0.ffn_gate_up_exps.weight[0,gate]": (32, 64),
        "blk.0.ffn_gate_up_exps.weight[0,up]": (32, 64),
        "blk.0.ffn_gate_up_exps.weight[1,gate]": (32, 64),
        "blk.0.ffn_gate_up_exps.weight[1,up]": (32, 64),
    }
    assert list(skipped) == ["blk.0.ffn_norm.weight"]


def test_a_quantised_file_is_analysed_and_not_pruned(write, tmp_path):
    path = write({"blk.0.ffn_up.weight": (weights(64, 96), Type.Q4_1)})
    (row,) = mpfast.analyze(path).layers
    assert (row.name, row.stored) == ("blk.0.ffn_up.weight", "Q4_1")
    assert 0 < row.quantization_noise < 0.05
    with pytest.raises(ValueError, match=r"dequantize is not there for GGUF, .*; convert it by its own tools"):
        mpfast.prune(path, tmp_path / "out", sparsity=0.5, dequantize="bfloat16")
    with pytest.raises(ValueError, match=r"is quantised: blk\.0\.ffn_up\.weight is packed; dequantise it first"):
        mpfast.prune(path, tmp_path / "out", sparsity=0.5)


def test_without_the_package_plain_files_are_read_and_others_say_what_to_install(write, monkeypatch):
    plain = write({"l.weight": weights(16, 32)})
    original = builtins.__import__
    monkeypatch.setattr("importlib.import_module", lambda name, *rest: _missing(name, original))
    from mpfast.checkpoints.gguf_file import GgufFile

    assert GgufFile(plain).read("l.weight").shape == (16, 32)
    packed = write({"l.weight": (weights(16, 32), Type.Q8_0)})
    with pytest.raises(ImportError, match=r'decoding Q8_0 needs the package gguf \(extra "gguf"\)'):
        GgufFile(packed)


def _missing(name, original):
    if name.startswith("gguf"):
        raise ImportError(name)
    return original(name)


def header(tensors=0, settings=0, version=3, rest=b""):
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, settings) + rest


def text(value):
    return struct.pack("<Q", len(value)) + value


def entry(name=b"w", dims=(32, 8), kind=8, offset=0, count=None):
    number = len(dims) if count is None else count
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", number, *dims, kind, offset)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF\x03", "needs 4 bytes"),
        (header(version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (header(tensors=1 << 60), "header of 1152921504606846976 tensors"),
        (header(settings=1 << 63), "settings needs"),
        (header(1, rest=text(b"x" * 70000) + bytes(99)), "has 70000 bytes"),
        (header(1, rest=struct.pack("<Q", 1 << 62) + bytes(99)), "has 4611686018427387904 bytes"),
        (header(1, rest=entry(count=5) + bytes(400)), "has 5 dimensions"),
        (header(1, rest=entry(dims=(1 << 40, 1 << 40)) + bytes(400)), "too large for any address space"),
        (header(1, rest=entry(dims=(32, 1 << 30)) + bytes(400)), "truncated or damaged"),
        (header(1, rest=entry(dims=(33, 8)) + bytes(400)), "32 entries of a row in a block"),
        (header(1, rest=entry(kind=4) + bytes(400)), "type 4, which is not known"),
        (header(1, rest=entry(offset=8) + bytes(400)), "no multiple of 32"),
        (header(2, rest=entry() + entry() + bytes(900)), "occurs twice"),
        (header(2, rest=entry() + entry(b"v", offset=32) + bytes(900)), "before the end of the tensor before"),
        (header(0, 1, rest=text(b"k") + struct.pack("<I", 77)), "unknown type 77"),
        (header(0, 1, rest=text(b"k") + struct.pack("<IIQ", 9, 0, 1 << 62)), "a setting needs"),
        (header(0, 1, rest=text(b"k") + struct.pack("<IIQ", 9, 9, 1 << 62)), "entries needs"),
        (header(0, 1, rest=text(b"general.alignment") + struct.pack("<II", 4, 24)), "no power of two"),
    ],
)
def test_what_breaks_the_format_is_refused(tmp_path, content, message):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_damaged_files_raise_checkpoint_errors_alone(write, tmp_path):
    whole = write({"l.weight": (weights(8, 64), Type.Q4_0), "k": weights(8)}, general__alignment=32).read_bytes()
    rng = np.random.default_rng(11)
    path = tmp_path / "damaged.gguf"
    read = 0
    for _ in range(400):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.3 else whole)
        for place in rng.integers(0, min(len(damaged), 300), rng.integers(1, 5)):
            damaged[place] = rng.choice([0, 1, 255, int(rng.integers(256))])
        path.write_bytes(b"GGUF" + damaged[4:])
        try:
            checkpoint = open_checkpoint(path)
            for info in checkpoint.tensors:
                assert checkpoint.read(info.name).shape == info.shape
                read += 1
        except CheckpointError:
            pass
    assert read > 0


def test_a_part_of_a_model_says_so(write):
    checkpoint = open_checkpoint(write({"l.weight": weights(16, 32)}, split__count=3))
    assert "one of 3 parts" in checkpoint.others[0].reason


# Written ------------------------------------------------------------------------------------------------------------


def model(write, kind=None):
    W = {name: weights(48, 64) for name in ("blk.0.attn_q.weight", "blk.0.ffn_up.weight", "token_embd.weight")}
    W["blk.0.ffn_odd.weight"] = weights(48, 80)
    typed = {name: W[name] if kind is None else (W[name], kind) for name in W if "odd" not in name}
    plain = {"blk.0.ffn_odd.weight": W["blk.0.ffn_odd.weight"], "output_norm.weight": weights(64)}
    return write({**typed, **plain}, general__file_type=1, llama__block_count=1)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize("source", [None, Type.BF16, Type.Q8_0])
def test_blocks_are_those_that_the_package_decodes(write, tmp_path, kind, source):
    path = model(write, source)
    result = mpfast.quantize(path, tmp_path / "out", format=kind)
    before = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    after = {tensor.name: tensor for tensor in reader.tensors}
    assert list(after) == list(before)
    chosen = [row.name for row in result.layers]
    assert chosen == ["blk.0.attn_q.weight", "blk.0.ffn_up.weight"]
    assert reader.fields["general.file_type"].contents() == {"Q4_0": 2, "Q8_0": 7}[kind]
    assert reader.fields["llama.block_count"].contents() == 1
    top = {"Q4_0": 8, "Q8_0": 128}[kind]
    read = open_checkpoint(tmp_path / "out" / "model.gguf").read
    for name, tensor in after.items():
        if name not in chosen:
            assert tensor.tensor_type == before[name].tensor_type
            assert np.array_equal(tensor.data, before[name].data)
            continue
        assert tensor.tensor_type == Type[kind]
        was, now = (quants.dequantize(each[name].data, each[name].tensor_type) for each in (before, after))
        assert np.array_equal(now.reshape(48, 64), read(name))
        parts = was.reshape(-1, 32).astype(np.float64)
        step = np.maximum(parts.max(axis=1) / (top - 1), parts.min(axis=1) / -top)
        # Half a step, of a scale that is rounded to float16; the ends are off by as much more as that moves them.
        most = step * (0.5 + top * 2.0**-11 + 1e-6)
        assert (np.abs(now.reshape(-1, 32) - parts) <= most[:, None]).all()
    assert result.bytes == (tmp_path / "out" / "model.gguf").stat().st_size


def test_with_moments_the_outputs_change_less(write, tmp_path):
    path = model(write)
    mixing = np.random.default_rng(0).standard_normal((64, 64)) / np.sqrt(np.arange(1, 65))[:, None]
    moments = dict.fromkeys(("blk.0.attn_q.weight", "blk.0.ffn_up.weight"), mixing.T @ mixing)
    result = mpfast.quantize(path, tmp_path / "out", format="Q4_0", moments=moments, damping=0.01)
    nearest = mpfast.quantize(path, tmp_path / "nearest", format="Q4_0")
    first, second = (open_checkpoint(tmp_path / name / "model.gguf") for name in ("out", "nearest"))
    source = open_checkpoint(path)
    for row, other in zip(result.layers, nearest.layers, strict=True):
        W, V, N = (each.read(row.name).astype(np.float64) for each in (source, first, second))
        errors = [float(np.square((W - each) @ mixing.T).sum() / np.square(W @ mixing.T).sum()) for each in (V, N)]
        assert row.error == pytest.approx(errors[0], rel=1e-6)
        assert errors[0] < errors[1]
        assert other.weight_error < row.weight_error


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_settings_are_kept_and_say_how_blocks_are_written(write, tmp_path, kind):
    def settings(reader):
        return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}

    path = tmp_path / "source.gguf"
    for said in (False, True):
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model("llama")
        writer.add_token_list([f"t{number}é" for number in range(300)])
        writer.add_token_scores([0.5] * 300)
        writer.add_chat_template("x" * 70_000)
        writer.add_int8("small", -3)
        writer.add_custom_alignment(64)
        if said:
            writer.add_quantization_version(1)
        for name, shape in (("blk.0.attn_q.weight", (48, 64)), ("odd", (7,)), ("n" * 70 + ".weight", (16, 32))):
            writer.add_tensor(name, weights(*shape))
        for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            step()
        writer.close()
        mpfast.quantize(path, tmp_path / "out", format=kind, overwrite=True)
        before, after = (gguf.GGUFReader(place) for place in (path, tmp_path / "out" / "model.gguf"))
        version = {} if said else {"general.quantization_version": 2}
        assert settings(after) == settings(before) | version
        assert [tensor.name for tensor in after.tensors] == [tensor.name for tensor in before.tensors]
        assert np.array_equal(after.tensors[1].data, before.tensors[1].data)
        assert [tensor.tensor_type.name for tensor in after.tensors] == [kind, "F32", kind]


def test_scales_that_half_precision_does_not_hold(write, tmp_path):
    W = weights(48, 64)
    W[3], W[4, :32] = 1e-9, 0.0
    path = write({"blk.0.attn_q.weight": W})
    (row,) = mpfast.quantize(path, tmp_path / "out", format="Q4_0").layers
    found = open_checkpoint(tmp_path / "out" / "model.gguf").read("blk.0.attn_q.weight")
    assert not found[3].any()
    assert not found[4, :32].any()
    # What is lost is that row; its share of the whole is next to nothing.
    others = np.delete(found - W, 3, axis=0)
    assert row.weight_error == pytest.approx(np.square(others, dtype=np.float64).sum() / np.square(W).sum(), rel=1e-5)
    mixing = weights(64, 64) / 8
    moments = {"blk.0.attn_q.weight": mixing.T @ mixing + np.eye(64)}
    mpfast.quantize(path, tmp_path / "seen", format="Q4_0", moments=moments, damping=0.01)
    assert not open_checkpoint(tmp_path / "seen" / "model.gguf").read("blk.0.attn_q.weight")[3].any()
    for scale in (1e-9, 1e6):
        path = write({"blk.0.attn_q.weight": W * np.float32(scale)})
        with pytest.raises(ValueError, match="has scales that float16 does not hold; leave it out"):
            mpfast.quantize(path, tmp_path / "other", format="Q4_0")
        assert not (tmp_path / "other").exists()


def test_a_part_of_a_model_is_not_written_under_another_name(write, tmp_path):
    path = write({"blk.0.attn_q.weight": weights(48, 64)}, split__count=3)
    assert mpfast.quantize(path, format="Q8_0").layers
    with pytest.raises(ValueError, match="is one file of several that are a model; merge them first"):
        mpfast.quantize(path, tmp_path / "out", format="Q8_0")
    assert not (tmp_path / "out").exists()


def test_what_is_not_written(write, tmp_path):
    path = model(write)
    for options, fact in (
        ({}, "format must be Q4_0 or Q8_0 for a GGUF file"),
        ({"format": "Q5_0"}, "format must be one of"),
        ({"format": "Q4_0", "bits": 4}, "bits is what Q4_0 has"),
        ({"format": "Q8_0", "group": 32}, "group is what Q8_0 has"),
    ):
        with pytest.raises(ValueError, match=fact):
            mpfast.quantize(path, **options)
    np.save(tmp_path / "w.npy", weights(64, 64))
    with pytest.raises(ValueError, match="a GGUF file is made from one"):
        mpfast.quantize(tmp_path / "w.npy", format="Q4_0")
