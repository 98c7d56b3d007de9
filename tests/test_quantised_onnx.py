"""Packed weights of ONNX against the formulas and ONNX Runtime, and what is refused of them."""

from __future__ import annotations

import numpy as np
import pytest

import mpfast
from mpfast.arrays import QuantisedArray
from mpfast.checkpoints import open_checkpoint, roles_of
from mpfast.checkpoints.quantised.bit_streams import unpacked
from mpfast.support import CheckpointError
from tests.quantised_encoders import check, packed

onnx = pytest.importorskip("onnx")
helper, TensorProto = onnx.helper, onnx.TensorProto
SIGNED = {"int8": (-128, 128), "uint8": (0, 256), "int16": (-999, 999), "int4": (-8, 8), "uint4": (0, 16)}


def tensor(name, array, dtype=None, *, bytes_of=False):
    """An initialiser; of integers below a byte as their bytes, or in words of 32 bits."""
    if dtype is None:
        return onnx.numpy_helper.from_array(np.asarray(array), name)
    made = helper.make_tensor(name, getattr(TensorProto, dtype.upper()), array.shape, array)
    if bytes_of and made.int32_data:
        made.raw_data = np.array(made.int32_data, np.int32).astype(np.uint8).tobytes()
        del made.int32_data[:]
    return made


def write(path, nodes, tensors, inputs, outputs, opset=21):
    """Write a model that takes X and returns Y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, inputs)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, outputs)],
        tensors,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def run(path, X):
    """What ONNX Runtime makes of X."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, {"X": X})[0]


def decoder_of(checkpoint, name):
    return checkpoint.weights[name].decoder


def dequantised(dtype, shape, scales, rng, *, zeros=True, **attributes):
    """A product with weights that are dequantised before: its parts, and their numbers."""
    low, high = SIGNED[dtype]
    codes = rng.integers(low, high, shape)
    scale = rng.uniform(0.01, 1, scales).astype(np.float32)
    points = rng.integers(low, high, scales) if zeros else np.zeros(scales, int)
    size = attributes.get("block_size", 1)
    if len(scales) == len(shape):
        index = [np.arange(side) // (size if count < side else 1) for side, count in zip(shape, scales, strict=True)]
        scale_of, points_of = scale[np.ix_(*index)], points[np.ix_(*index)]
    else:
        spread = [1] * len(shape)
        if scales:
            spread[attributes["axis"]] = -1
        scale_of, points_of = scale.reshape(spread), points.reshape(spread)
    numbers = ((codes - points_of) * scale_of).astype(np.float32)
    names = ["W", "s", "z"][: 2 + zeros]
    node = helper.make_node("DequantizeLinear", names, ["D"], **attributes)
    tensors = [tensor("W", codes, dtype), tensor("s", scale), *([tensor("z", points, dtype)] if zeros else [])]
    rounding = np.mean(np.square(np.broadcast_to(scale_of, shape), dtype=np.float64)) / 12
    return node, tensors, numbers, rounding


CASES = [
    ((40, 33), (), {}, ""),
    ((40, 33), (33,), {"axis": 1}, " by column"),
    ((40, 33), (40,), {"axis": 0}, " by row"),
    ((40, 40), (40,), {"axis": -1}, " by column"),
    ((40, 33), (40, 3), {"axis": 1, "block_size": 16}, " 1x16"),
    ((40, 33), (3, 33), {"axis": 0, "block_size": 16}, " 16x1"),
    ((3, 20, 33), (3, 20, 3), {"axis": 2, "block_size": 16}, " 1x16"),
    ((3, 20, 33), (3,), {"axis": 0}, ""),
]


@pytest.mark.parametrize("dtype", sorted(SIGNED))
@pytest.mark.parametrize(("shape", "scales", "attributes", "label"), CASES)
@pytest.mark.parametrize("zeros", [False, True])
def test_dequantize_linear(dtype, shape, scales, attributes, label, zeros, tmp_path):
    node, tensors, numbers, rounding = dequantised(
        dtype, shape, scales, np.random.default_rng(1), zeros=zeros, **attributes
    )
    product = helper.make_node("MatMul", ["X", "D"], ["Y"])
    path = write(tmp_path / "m.onnx", [node, product], tensors, [None] * len(shape), [None] * len(shape))
    checkpoint = open_checkpoint(path)
    decoder = decoder_of(checkpoint, "W")
    assert decoder.stored == f"{dtype}{label}"
    check(decoder, numbers, rounding)
    role = roles_of(checkpoint)["W"]
    assert (role.kind, role.input_axes) == (("linear", (0,)) if len(shape) == 2 else ("experts", (1,)))
    assert roles_of(checkpoint)["s"].kind == "companion"


@pytest.mark.parametrize("dtype", ["int8", "uint4"])
def test_dequantize_linear_as_onnx_runtime_does(dtype, tmp_path):
    node, tensors, numbers, _ = dequantised(dtype, (64, 48), (2, 48), np.random.default_rng(2), axis=0, block_size=32)
    product = helper.make_node("MatMul", ["X", "D"], ["Y"])
    path = write(tmp_path / "m.onnx", [node, product], tensors, [64, 64], [64, 48])
    np.testing.assert_allclose(run(path, np.eye(64, dtype=np.float32)), numbers, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(open_checkpoint(path).read("W")), numbers)


@pytest.mark.parametrize("outside", [False, True])
def test_integers_below_a_byte_in_bytes_and_in_a_file_beside(outside, tmp_path):
    node, tensors, numbers, rounding = dequantised("int4", (33, 21), (21,), np.random.default_rng(3), axis=1)
    codes = np.array(tensors[0].int32_data, np.int32).astype(np.uint8).tobytes()
    del tensors[0].int32_data[:]
    if outside:
        (tmp_path / "data.bin").write_bytes(b"ab" + codes)
        tensors[0].data_location = TensorProto.EXTERNAL
        for key, value in (("location", "data.bin"), ("offset", "2"), ("length", str(len(codes)))):
            entry = tensors[0].external_data.add()
            entry.key, entry.value = key, value
    else:
        tensors[0].raw_data = codes
    product = helper.make_node("MatMul", ["X", "D"], ["Y"])
    path = write(tmp_path / "m.onnx", [node, product], tensors, [1, 33], [1, 21])
    check(decoder_of(open_checkpoint(path), "W"), numbers, rounding)
    if outside:
        (tmp_path / "data.bin").write_bytes(codes[:-1])
    else:
        tensors[0].raw_data = codes[:-1]
        write(path, [node, product], tensors, [1, 33], [1, 21])
    with pytest.raises(CheckpointError, match="'W'"):
        np.asarray(open_checkpoint(path).read("W"))


def test_float8_and_a_transpose(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(4)
    codes = rng.standard_normal((32, 48)).astype(ml_dtypes.float8_e4m3fn)
    scale = rng.uniform(0.1, 1, 32).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["W", "s"], ["D"], axis=0),
        helper.make_node("Transpose", ["D"], ["T"], perm=[1, 0]),
        helper.make_node("MatMul", ["X", "T"], ["Y"]),
    ]
    path = write(tmp_path / "m.onnx", nodes, [tensor("W", codes), tensor("s", scale)], [1, 48], [1, 32])
    checkpoint = open_checkpoint(path)
    np.testing.assert_array_equal(
        np.asarray(checkpoint.read("W")), codes.astype(np.float32) * scale[:, None], strict=True
    )
    assert roles_of(checkpoint)["W"].input_axes == (1,)
    (row,) = mpfast.analyze(checkpoint).layers
    assert row.stored == "fp8 by row"


def product_parts(bits, shape, width, rng, *, zeros=None, flat=False):
    """A product of codes in blocks: the node, its tensors, and the numbers."""
    outputs, inputs = shape
    blocks = -(-inputs // width)
    codes = rng.integers(0, 2**bits, (outputs, blocks * width))
    scale = rng.uniform(0.01, 1, (outputs, blocks)).astype(np.float32)
    points = np.full((outputs, blocks), float(2 ** (bits - 1)))
    stored = packed(codes, bits).view(np.uint8)[:, : blocks * width * bits // 8].reshape(outputs, blocks, -1)
    tensors = [tensor("B", stored), tensor("s", scale.reshape(-1) if flat else scale)]
    if zeros == "packed":
        points = rng.integers(0, 2**bits, (outputs, blocks))
        held = packed(points, bits).view(np.uint8)[:, : -(-blocks * bits // 8)]
        tensors.append(tensor("z", held.reshape(-1) if flat else held))
    elif zeros == "numbers":
        points = rng.uniform(0, 2**bits, (outputs, blocks)).astype(np.float32)
        tensors.append(tensor("z", points))
    names = ["X", "B", "s", *(["z"] if zeros else [])]
    node = helper.make_node(
        "MatMulNBits", names, ["Y"], domain="com.microsoft", K=inputs, N=outputs, bits=bits, block_size=width
    )
    index = np.arange(inputs) // width
    numbers = (codes[:, :inputs].astype(np.float32) - points.astype(np.float32)[:, index]) * scale[:, index]
    return node, tensors, numbers.astype(np.float32), np.mean(np.square(scale[:, index], dtype=np.float64)) / 12


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", [None, "packed", "numbers"])
@pytest.mark.parametrize(("shape", "width", "flat"), [((40, 128), 32, False), ((33, 70), 16, True)])
def test_products_of_n_bits(bits, zeros, shape, width, flat, tmp_path):
    node, tensors, numbers, rounding = product_parts(
        bits, shape, width, np.random.default_rng(5), zeros=zeros, flat=flat
    )
    path = write(tmp_path / "m.onnx", [node], tensors, [1, shape[1]], [1, shape[0]])
    checkpoint = open_checkpoint(path)
    decoder = decoder_of(checkpoint, "B")
    assert decoder.stored == f"int{bits} g{width}"
    check(decoder, numbers, rounding)
    role = roles_of(checkpoint)["B"]
    assert (role.kind, role.input_axes) == ("linear", (1,))
    (row,) = mpfast.analyze(checkpoint).layers
    assert row.shape == shape


@pytest.mark.parametrize(
    ("bits", "zeros"), [(2, None), (2, "packed"), (4, None), (4, "packed"), (4, "numbers"), (8, None), (8, "packed")]
)
def test_products_of_n_bits_as_onnx_runtime_does(bits, zeros, tmp_path):
    node, tensors, numbers, _ = product_parts(bits, (48, 96), 32, np.random.default_rng(6), zeros=zeros, flat=True)
    path = write(tmp_path / "m.onnx", [node], tensors, [96, 96], [96, 48])
    np.testing.assert_allclose(run(path, np.eye(96, dtype=np.float32)).T, numbers, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(open_checkpoint(path).read("B")), numbers)


@pytest.mark.parametrize("zeros", [None, "numbers"])
@pytest.mark.parametrize("padded", [False, True])
def test_products_whose_inputs_are_in_any_order(zeros, padded, tmp_path):
    """Each input says which block's scale and zero point it has; a last block that is cut off may say more."""
    rng = np.random.default_rng(9)
    inputs, width = (88 if padded else 96), 32
    node, tensors, _, _ = product_parts(4, (48, inputs), width, rng, zeros=zeros)
    groups = rng.permutation(np.arange(96) // width).astype(np.int32)
    node.input.extend([*([""] if zeros is None else []), "g"])
    path = write(tmp_path / "m.onnx", [node], [*tensors, tensor("g", groups)], [inputs, inputs], [inputs, 48])
    codes, scales, *points = map(onnx.numpy_helper.to_array, tensors)
    index = groups[:inputs]
    numbers = unpacked(codes.reshape(48, -1), 4, slice(0, inputs)).astype(np.float32)
    numbers -= points[0][:, index] if points else 8
    numbers *= scales[:, index]
    rounding = np.mean(np.square(scales[:, index], dtype=np.float64)) / 12
    check(decoder_of(open_checkpoint(path), "B"), numbers, rounding)
    if not padded:
        np.testing.assert_allclose(run(path, np.eye(inputs, dtype=np.float32)).T, numbers, atol=1e-5)


@pytest.mark.parametrize(("bits", "zeros", "what"), [(4, "packed", "packed zero points"), (2, None, "2 bits")])
def test_what_is_not_known_of_inputs_in_any_order_is_refused(bits, zeros, what, tmp_path):
    node, tensors, _, _ = product_parts(bits, (48, 96), 32, np.random.default_rng(11), zeros=zeros)
    node.input.extend([*([""] if zeros is None else []), "g"])
    groups = tensor("g", np.zeros(96, np.int32))
    path = write(tmp_path / "m.onnx", [node], [*tensors, groups], [96, 96], [96, 48])
    assert f"has {what} under g_idx, and what these mean there is not known" in refused(path, "B")


def test_an_input_of_a_block_that_is_not_there_is_no_number(tmp_path):
    node, tensors, _, _ = product_parts(4, (48, 96), 32, np.random.default_rng(10))
    node.input.extend(["", "g"])
    wrong = tensor("g", np.full(96, 3, np.int32))
    path = write(tmp_path / "m.onnx", [node], [*tensors, wrong], [96, 96], [96, 48])
    with pytest.raises(CheckpointError, match="g has groups from 3 to 3, of which there are 3"):
        np.asarray(open_checkpoint(path).read("B"))
    short = tensor("g", np.zeros(95, np.int32))
    path = write(tmp_path / "m.onnx", [node], [*tensors, short], [96, 96], [96, 48])
    assert "g has the shape (95,)" in refused(path, "B")


def refused(path, name="W"):
    """Why a weight is not read."""
    checkpoint = open_checkpoint(path)
    assert name not in checkpoint.weights
    role = roles_of(checkpoint)[name]
    assert (role.kind, role.source) == ("quantised", "ONNX node")
    assert not isinstance(checkpoint.read(name), QuantisedArray)
    return role.reason


@pytest.mark.parametrize(
    ("shape", "scales", "attributes", "reason"),
    [
        ((40, 33), (33,), {"axis": 0}, "along the axis 0"),
        ((40, 33), (40, 2), {"axis": 1, "block_size": 16}, "in blocks of 16"),
        ((40, 33), (33,), {"axis": 7}, "has the axis 7"),
        ((8, 4, 3, 3), (8,), {"axis": 0}, "2 or 3 dimensions"),
    ],
)
def test_scales_that_do_not_fit_are_refused(shape, scales, attributes, reason, tmp_path):
    rng = np.random.default_rng(7)
    tensors = [tensor("W", rng.integers(-9, 9, shape), "int8"), tensor("s", np.ones(scales, np.float32))]
    node = helper.make_node("DequantizeLinear", ["W", "s"], ["Y"], **attributes)
    assert reason in refused(write(tmp_path / "m.onnx", [node], tensors, [1], list(shape)))


def test_what_the_graph_computes_or_takes_twice_is_refused(tmp_path):
    codes, one, two = (
        tensor("W", np.ones((16, 16), np.int8)),
        tensor("s", np.float32(1)),
        tensor("t", np.float32(2)),
    )
    first = helper.make_node("DequantizeLinear", ["W", "s"], ["D"])
    computed = [helper.make_node("Mul", ["s", "X"], ["c"]), helper.make_node("DequantizeLinear", ["W", "c"], ["Y"])]
    assert "scale is computed" in refused(write(tmp_path / "a.onnx", computed, [codes, one], [], [16, 16]))
    twice = [first, helper.make_node("DequantizeLinear", ["W", "t"], ["Y"])]
    assert "in different ways" in refused(write(tmp_path / "b.onnx", twice, [codes, one, two], [1], [16, 16]))
    other = [helper.make_node("QLinearMatMul", ["X", "s", "z", "W", "t", "z", "s", "z"], ["Y"])]
    zero = tensor("z", np.int8(0))
    path = write(tmp_path / "c.onnx", other, [codes, one, two, zero], [16, 16], [16, 16])
    assert "is taken by 'QLinearMatMul'" in refused(path)


def test_names_say_nothing_of_an_onnx_model(tmp_path):
    # Called as in other libraries, where the scale would be of the rows.
    tensors = [
        tensor("l.weight", np.ones((16, 16), np.int8)),
        tensor("l.weight_scale", np.arange(16, dtype=np.float32)),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["l.weight", "l.weight_scale"], ["D"], axis=1),
        helper.make_node("MatMul", ["X", "D"], ["Y"]),
    ]
    checkpoint = open_checkpoint(write(tmp_path / "m.onnx", nodes, tensors, [1, 16], [1, 16]))
    np.testing.assert_array_equal(np.asarray(checkpoint.read("l.weight"))[3], np.arange(16))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"K": 127}, ""),
        ({"K": 129}, "shape"),
        ({"N": 39}, "shape"),
        ({"bits": 3}, "shape"),
        ({"bits": 9}, "none of its kind"),
        ({"block_size": 0}, "none of its kind"),
        ({"K": 1 << 60}, "shape"),
        ({"weight_prepacked": 1}, "for one machine"),
    ],
)
def test_products_that_do_not_fit_are_refused(change, reason, tmp_path):
    node, tensors, _, _ = product_parts(4, (40, 128), 32, np.random.default_rng(8), zeros="packed")
    for name, value in change.items():
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])
    path = write(tmp_path / "m.onnx", [node], tensors, [1, 128], [1, 40])
    if reason:
        assert reason in refused(path, "B")
    else:
        assert open_checkpoint(path).read("B").shape == (40, 127)
