"""Arrays laid out in every way: the results are those of a plain copy; and interfaces that lie are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpfast
from mpfast import masks
from mpfast.arrays.array_interfaces import CudaRecord
from mpfast.arrays.devices import device_matrix
from mpfast.arrays.views import as_matrix

EXTENTS = st.sampled_from([1, 2, 3, 7, 13, 16, 31])
SHAPES = st.one_of(st.tuples(EXTENTS, EXTENTS), st.sampled_from([(1, 1), (1, 4099), (4099, 1), (2, 2053), (2053, 2)]))
DTYPES = st.sampled_from(["float64", "float32", "float16"])


@st.composite
def layouts(draw):
    """A view of random numbers: stepped, reversed, transposed, broadcast or overlapping."""
    rows, cols = draw(SHAPES)
    dtype = draw(DTYPES)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    kind = draw(st.sampled_from(["stepped", "transposed", "broadcast rows", "broadcast cols", "overlapping"]))
    if kind == "overlapping":
        line = rng.standard_normal(rows + cols).astype(dtype)
        size = line.itemsize
        return np.lib.stride_tricks.as_strided(line, (rows, cols), (size, size), writeable=False)
    if kind == "broadcast rows":
        return np.broadcast_to(rng.standard_normal(cols).astype(dtype), (rows, cols))
    if kind == "broadcast cols":
        return np.broadcast_to(rng.standard_normal((rows, 1)).astype(dtype), (rows, cols))
    steps = [draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in range(2)]
    shape = [abs(step) * extent for step, extent in zip(steps, (rows, cols), strict=True)]
    whole = rng.standard_normal(shape).astype(dtype)
    view = whole[:: steps[0], :: steps[1]]
    return view.T if kind == "transposed" else view


@settings(max_examples=60, deadline=None)
@given(layouts(), st.sampled_from([1, 3, 8]))
def test_products_do_not_depend_on_the_layout(W, vectors):
    X = np.random.default_rng(1).standard_normal((W.shape[1], vectors))
    wide = W.astype(np.float64)
    scale = np.linalg.norm(wide) ** 2 * np.linalg.norm(X)
    # Single-precision kernels: each of the two sums has the rounding error of its length times 2^-24 at most.
    bound = 4 * max(W.shape) * (2.0**-24 if W.dtype.itemsize < 8 else 2.0**-53) * scale
    found = np.asarray(mpfast.gram_product(W, X, side="right"))
    assert np.abs(found - wide.T @ (wide @ X)).max() <= bound
    copy = np.asarray(mpfast.gram_product(np.ascontiguousarray(W), X, side="right"))
    assert np.abs(found - copy).max() <= 2 * bound


@settings(max_examples=60, deadline=None)
@given(layouts())
def test_spectra_do_not_depend_on_the_layout(W):
    wide = W.astype(np.float64)
    exact = np.linalg.svd(wide, compute_uv=False)
    found = mpfast.spectrum(W, method="exact").values
    # The Gram matrix squares the values: its error of n eps sigma_1^2 is the root of that for values near zero.
    noise = max(W.shape) * np.finfo(np.float64).eps * exact[0] ** 2
    np.testing.assert_allclose(found**2, exact**2, rtol=1e-9, atol=20 * noise)


@settings(max_examples=30, deadline=None)
@given(layouts())
def test_triplets_do_not_depend_on_the_layout(W):
    values = mpfast.svd(W, 1, seed=3).s
    assert values[0] == pytest.approx(np.linalg.norm(W.astype(np.float64), 2), rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(layouts(), st.floats(0, 1))
def test_masks_do_not_depend_on_the_layout(W, sparsity):
    keep = masks.magnitude(W, sparsity)
    np.testing.assert_array_equal(keep, masks.magnitude(np.ascontiguousarray(W), sparsity))
    if W.shape[1] % 4 == 0:
        np.testing.assert_array_equal(masks.n_m(W, 2, 4), masks.n_m(np.ascontiguousarray(W), 2, 4))


@given(st.sampled_from([(0, 3), (3, 0), (0, 0), (3,), (), (2, 2, 2)]), DTYPES)
def test_no_matrices(shape, dtype):
    for call in (mpfast.spectrum, lambda W: mpfast.svd(W, 1), lambda W: mpfast.gram_product(W, np.ones((3, 1)))):
        with pytest.raises(ValueError, match=r"\(\): W (is empty|must be 2-D)"):
            call(np.zeros(shape, dtype))


@given(st.sampled_from([">f4", ">f8", ">f2"]))
def test_foreign_byte_order(dtype):
    with pytest.raises(TypeError, match="foreign byte order"):
        mpfast.spectrum(np.ones((4, 5), dtype))


@given(st.integers(1, 7), st.sampled_from(["f4", "f8"]))
def test_misaligned_memory(offset, dtype):
    size = np.dtype(dtype).itemsize
    W = np.frombuffer(bytes(20 * size + 8), dtype, 20, offset).reshape(4, 5)
    if offset % size:
        with pytest.raises(ValueError, match="not aligned"):
            mpfast.spectrum(W)
    else:
        assert not mpfast.spectrum(W, method="exact").values.any()


class Foreign:
    def __init__(self, **interface):
        self.__array_interface__ = {"version": 3, "typestr": "<f4", "shape": (2, 3), "data": bytes(24), **interface}


@pytest.mark.parametrize(
    ("interface", "message"),
    [
        ({"shape": (2, 4)}, "reaches beyond its memory"),
        ({"strides": (16, 4)}, "reaches beyond its memory"),
        ({"strides": (-12, 4)}, "reaches beyond its memory"),
        ({"offset": 4}, "reaches beyond its memory"),
        ({"offset": -4}, "reaches beyond its memory"),
        ({"offset": "4"}, "reaches beyond its memory"),
        ({"shape": (2**40, 2**40)}, "shape must be of a size"),
        ({"shape": (2**63, 0)}, "shape must be of a size"),
        ({"shape": (-2, 3)}, "shape must be a tuple"),
        ({"shape": [2, 3]}, "shape must be a tuple"),
        ({"shape": (True, 3)}, "shape must be a tuple"),
        ({"shape": (1,) * 40}, "shape must be a tuple"),
        ({"strides": (4,)}, "strides must be"),
        ({"strides": (2**64, 4)}, "strides must be"),
        ({"strides": (12.0, 4)}, "strides must be"),
        ({"data": (0, False)}, "data must be a pair"),
        ({"data": (2**64, False)}, "data must be a pair"),
        ({"data": (2**64 - 4, False)}, "within the address space"),
        ({"data": (8, False), "strides": (-12, 4)}, "within the address space"),
        ({"data": None}, "data must be a pair"),
        ({"typestr": 7}, "typestr must be"),
        ({"typestr": "<f0"}, "typestr must be"),
        ({"mask": True}, "mask must be None"),
    ],
)
def test_interfaces_that_lie(interface, message):
    with pytest.raises(ValueError, match=rf"spectrum\(\): W.*{message}"):
        mpfast.spectrum(Foreign(**interface))


def test_interfaces_that_tell_the_truth():
    W = np.arange(1, 7, dtype="<f4").reshape(2, 3)
    expected = np.linalg.svd(W.astype(float), compute_uv=False)
    inside = {"data": bytes(4) + W.tobytes(), "offset": 4}
    backwards = {"data": W[::-1].tobytes(), "strides": (-12, 4), "offset": 12}
    address = {"data": (W.ctypes.data, True)}
    for interface in (inside, backwards, address):
        np.testing.assert_allclose(mpfast.spectrum(Foreign(**interface), method="exact").values, expected, rtol=1e-6)


def test_an_interface_is_read_once():
    class Fickle:
        calls = 0

        @property
        def __array_interface__(self):
            Fickle.calls += 1
            # hasattr() looks, then it is read: the third look is NumPy's, where it would reach beyond the bytes.
            shape = (2, 3) if Fickle.calls <= 2 else (2000, 3000)
            return {"version": 3, "typestr": "<f4", "shape": shape, "data": bytes(24)}

    assert as_matrix(Fickle()).shape == (2, 3)


def test_interfaces_that_are_none():
    for interface in (None, 3, [("shape", (2, 3))]):
        foreign = Foreign()
        foreign.__array_interface__ = interface
        with pytest.raises(TypeError, match=r"spectrum\(\): W.__array_interface__ must be a dictionary"):
            mpfast.spectrum(foreign)


@pytest.mark.parametrize("method", ["__array__", "__dlpack__", "__dlpack_device__"])
@pytest.mark.parametrize("error", [RuntimeError, KeyError, ZeroDivisionError, TypeError, ValueError])
def test_foreign_exceptions_come_with_the_argument(method, error):
    def fail(*_, **__):
        raise error("from abroad")

    with pytest.raises(TypeError, match=r"spectrum\(\): W .*from abroad"):
        mpfast.spectrum(type("Failing", (), {method: fail})())
    with pytest.raises(TypeError, match=r"spectrum\(\): W .*from abroad"):
        mpfast.spectrum(type("Failing", (), {method: property(fail)})())


class OnDevice:
    def __init__(self, **interface):
        said = {"version": 3, "typestr": "<f4", "shape": (2, 3), "data": (4096, False), "strides": None, **interface}
        self.__cuda_array_interface__ = {key: value for key, value in said.items() if value is not ...}


class Backend:
    """Takes what the native module would be given."""

    @staticmethod
    def device_of(_):
        return 0

    @staticmethod
    def Matrix(**arguments):
        return arguments


@pytest.mark.parametrize(
    ("interface", "error", "message"),
    [
        ({"typestr": "<i4"}, TypeError, "typestr '<i4'"),
        ({"typestr": ...}, TypeError, "typestr None"),
        ({"typestr": ["<f4"]}, TypeError, "typestr"),
        ({"shape": (3,)}, ValueError, "must be 2-D"),
        ({"shape": (0, 3)}, ValueError, "is empty"),
        ({"shape": (-1, 3)}, ValueError, "shape must be"),
        ({"shape": "23"}, ValueError, "shape must be"),
        ({"shape": (2**40, 2**40)}, ValueError, "shape must be"),
        ({"strides": (12,)}, ValueError, "strides must be"),
        ({"strides": (12, "4")}, ValueError, "strides must be"),
        ({"strides": (13, 4)}, ValueError, "not aligned"),
        ({"strides": (-8192, 4)}, ValueError, "within the address space"),
        ({"data": (0, False)}, ValueError, "data must be"),
        ({"data": 4096}, ValueError, "data must be"),
        ({"data": (4098, False)}, ValueError, "not aligned"),
        ({"data": (2**64 - 8, False)}, ValueError, "within the address space"),
        ({"stream": 0}, ValueError, "stream must be"),
        ({"stream": -1}, ValueError, "stream must be"),
        ({"stream": "1"}, ValueError, "stream must be"),
        ({"mask": 1}, ValueError, "mask must be None"),
    ],
)
def test_device_interfaces_that_lie(interface, error, message):
    with pytest.raises(error, match=rf"^A.*{message}"):
        device_matrix(OnDevice(**interface), Backend, name="A")


def test_device_interfaces_that_tell_the_truth():
    record = CudaRecord.of(OnDevice(strides=(24, 8), stream=7), "A")
    assert record == CudaRecord("float32", (2, 3), (6, 2), 4096, 7)
    W = OnDevice(stream=1)
    expected = {"address": 4096, "dtype": "float32", "shape": (2, 3), "strides": (3, 1), "device": 0, "stream": 0}
    assert device_matrix(W, Backend) == {**expected, "owner": W}


@pytest.mark.parametrize(
    ("error", "kind"), [(RuntimeError, TypeError), (BufferError, TypeError), (ValueError, ValueError)]
)
def test_foreign_exceptions_on_a_device(error, kind):
    class Failing:
        def __dlpack__(self, **_):
            raise error("from abroad")

    with pytest.raises(kind, match=r"^A cannot be read through DLPack: from abroad"):
        device_matrix(Failing(), Backend, name="A")


class OfShapeAndType:
    """Passes for an array of a checkpoint by its shape and type."""

    shape, dtype = (32, 32), np.dtype(np.float64)


class WhoseMethodFails(OfShapeAndType):
    def __array__(self, *_, **__):
        return self.entries  # of which it has none


class WhosePropertyFails(OfShapeAndType):
    @property
    def __array__(self):
        return self.entries


class WhoseInterfaceFails(OfShapeAndType):
    @property
    def __array_interface__(self):
        return self.entries


class Remote(OfShapeAndType):
    def __array__(self, *_, **__):
        raise OSError("entries are gone")


@pytest.mark.parametrize("kind", [WhoseMethodFails, WhosePropertyFails, WhoseInterfaceFails, Remote])
def test_an_array_that_fails_is_an_error_and_no_layer_that_is_skipped(kind):
    message = rf"{kind.__name__} that cannot be read as an array: \w+Error: .*entries"
    with pytest.raises(TypeError, match=rf"W is a {message}"):
        mpfast.spectrum(kind())
    with pytest.raises(TypeError, match=rf"^analyze\(\): w\.weight is a {message}") as caught:
        mpfast.analyze({"w.weight": kind(), "v.weight": np.eye(32)})
    assert isinstance(caught.value.__cause__, AttributeError | OSError)
    with pytest.raises(TypeError, match=rf"^prune\(\): w\.weight is a {message}"):
        mpfast.prune({"w.weight": kind()}, sparsity=0.5, method="magnitude")


def test_an_array_whose_shape_fails_is_named():
    class Unready:
        dtype = np.dtype(np.float64)

        @property
        def shape(self):
            raise RuntimeError("not ready")

    with pytest.raises(
        TypeError, match=r"model\['w'\] is a Unready whose shape or type cannot be read: Runtime.*ready"
    ):
        mpfast.analyze({"w": Unready()})


def masked():
    array = np.ma.masked_array(np.random.default_rng(0).standard_normal((64, 48)), mask=False)
    array[3, 4] = np.ma.masked
    return array


@pytest.mark.parametrize(
    "use",
    [
        mpfast.spectrum,
        lambda W: mpfast.svd(W, 2),
        lambda W: mpfast.masks.magnitude(W, 0.5),
        lambda W: mpfast.masks.n_m(W, 2, 4),
        lambda W: mpfast.masks.n_m(np.ones((8, 48)), 2, 4, second_moment=W[:48]),
        lambda W: mpfast.masks.magnitude(W.data, 0.5, within=W > 0),
        lambda W: mpfast.analyze({"w": W}),
        lambda W: mpfast.prune({"w": W}, sparsity=0.5, method="magnitude"),
    ],
)
def test_masked_entries_are_not_computed_with(use):
    with pytest.raises(ValueError, match="is a masked array; fill it first"):
        use(masked())


def test_a_masked_array_of_which_nothing_is_masked_is_an_array():
    array = np.ma.masked_array(masked().data, mask=False)
    assert mpfast.spectrum(array).fro_norm == mpfast.spectrum(array.data).fro_norm


def test_a_type_that_buffers_cannot_name_is_read_otherwise():
    """TensorFlow's bfloat16 is ml_dtypes', which NumPy refuses to export."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    from mpfast.arrays.views import is_buffer

    W = masked().data.astype(ml_dtypes.bfloat16)
    with pytest.raises(ValueError, match="cannot include dtype"):
        memoryview(W)
    assert not is_buffer(W)


def test_a_module_is_told_where_its_weight_is():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"W must be an array, not Linear; pass W\.weight"):
        mpfast.spectrum(torch.nn.Linear(8, 8))
    with pytest.raises(TypeError, match=r"not ReLU; pass one of its weights"):
        mpfast.spectrum(torch.nn.ReLU())
