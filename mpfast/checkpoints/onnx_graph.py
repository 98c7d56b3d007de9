"""Where an ONNX model keeps its tensors, and what the nodes that use them say of their roles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mpfast.checkpoints.base import NoTensor, Role

__all__ = ["OnnxTensors", "QuantisedInput", "tensors_of"]

_SOURCE = "ONNX node"
# Operators whose output is their first input, entry by entry.
_SAME = frozenset({"Identity", "Cast", "CastLike", "Dropout"})
# Operators that take packed weights: which input these are, and which ones belong to them.
_QUANTISED: Mapping[str, tuple[int, Mapping[str, int]]] = {
    "DequantizeLinear": (0, {"scale": 1, "zero_point": 2}),
    "MatMulNBits": (1, {"scales": 2, "zero_points": 3, "g_idx": 4}),
    "QLinearMatMul": (3, {"scale": 4, "zero_point": 5}),
    "QLinearConv": (3, {"scale": 4, "zero_point": 5}),
    "QGemm": (3, {"scale": 4, "zero_point": 5}),
    "DynamicQuantizeMatMul": (1, {"scale": 2, "zero_point": 3}),
    "MatMulIntegerToFloat": (1, {"scale": 3, "zero_point": 5}),
}


@dataclass(frozen=True)
class QuantisedInput:
    """How a node takes a tensor for packed weights.

    Attributes
    ----------
    operator : str
        The node's type.
    parts : dict of str to str
        The tensors that belong to it, by what they are to the node.
    attributes : dict of str to int
        The node's.
    unknown : str
        What keeps the weights from being known; empty where nothing does.
    """

    operator: str
    parts: Mapping[str, str]
    attributes: Mapping[str, int]
    unknown: str = ""


@dataclass
class OnnxTensors:
    """The tensors of a model in the order of its graphs.

    Attributes
    ----------
    tensors : dict of str to TensorProto
        By name; where two graphs of one model use a name, the second has the path to its graph before it.
    roles : dict of str to Role
        Of those that a node multiplies with or looks up in.
    quantised : dict of str to QuantisedInput
        What nodes take for packed weights.
    others : list of NoTensor
        Sparse initialisers and constants.
    repeated : list of str
        Names that one graph gives twice.
    """

    tensors: dict[str, Any] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=dict)
    quantised: dict[str, QuantisedInput] = field(default_factory=dict)
    others: list[NoTensor] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _View:
    """What a name stands for in a graph: a tensor, perhaps transposed."""

    key: str
    transposed: bool = False


def tensors_of(model: Any) -> OnnxTensors:
    """Go through the graph, its subgraphs, and the functions of a model."""
    found = OnnxTensors()
    _walk(model.graph, "", {}, found)
    for function in model.functions:
        _nodes(function.node, f"{function.name}.", {}, found)
    return found


def _walk(graph: Any, path: str, outer: Mapping[str, _View], found: OnnxTensors) -> None:
    scope = dict(outer)
    own: set[str] = set()
    for tensor in graph.initializer:
        if tensor.name in own:
            found.repeated.append(tensor.name)
        own.add(tensor.name)
        scope[tensor.name] = _View(_add(tensor, tensor.name, path, found))
    for sparse in graph.sparse_initializer:
        _add_sparse(sparse, sparse.values.name, path, found)
    _nodes(graph.node, path, scope, found)


def _nodes(nodes: Any, path: str, scope: dict[str, _View], found: OnnxTensors) -> None:
    for number, node in enumerate(nodes):
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Constant" and node.output:
            if "value" in attributes:
                scope[node.output[0]] = _View(_add(attributes["value"].t, node.output[0], path, found))
            elif "sparse_value" in attributes:
                _add_sparse(attributes["sparse_value"].sparse_tensor, node.output[0], path, found)
            continue
        _follow(node, attributes, scope)
        _take_packed(node, attributes, scope, found)
        for key, role in _roles(node, attributes, scope, found.tensors):
            earlier = found.roles.get(key)
            if earlier is None or (role.kind in ("embedding", "companion") and earlier.kind != "companion"):
                found.roles[key] = role
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                _walk(inner, f"{path}{node.name or f'{node.op_type}_{number}'}.{attribute.name}.", scope, found)


def _add(tensor: Any, name: str, path: str, found: OnnxTensors) -> str:
    key = name
    if key in found.tensors:
        key = f"{path}{name}"
    attempt = 1
    while key in found.tensors:
        attempt += 1
        key = f"{path}{name}.{attempt}"
    found.tensors[key] = tensor
    return key


def _add_sparse(sparse: Any, name: str, path: str, found: OnnxTensors) -> None:
    what = f"a sparse tensor of shape {tuple(sparse.dims)}: pass its dense form"
    found.others.append(NoTensor(f"{path}{name}", "sparse tensor", what, lost=True))


def _follow(node: Any, attributes: Mapping[str, Any], scope: dict[str, _View]) -> None:
    """Let the output of what only renames, casts or transposes a matrix stand for it."""
    if not node.input or not node.output or node.input[0] not in scope:
        return
    view = scope[node.input[0]]
    if node.op_type in _SAME:
        scope[node.output[0]] = view
    elif node.op_type == "Transpose":
        order = list(attributes["perm"].ints) if "perm" in attributes else [1, 0]
        if order in ([1, 0], [0, 1]):
            scope[node.output[0]] = _View(view.key, view.transposed != (order == [1, 0]))


def _take_packed(node: Any, attributes: Mapping[str, Any], scope: dict[str, _View], found: OnnxTensors) -> None:
    """Record what a node says of packed weights, and let those that it dequantises stand for them."""
    if node.op_type not in _QUANTISED:
        return
    place, words = _QUANTISED[node.op_type]
    names = dict(enumerate(node.input))
    view = scope.get(names.get(place, ""))
    if view is None:
        return
    given = {word: names[at] for word, at in words.items() if names.get(at)}
    computed = [word for word, name in given.items() if name not in scope]
    unknown = f"its {computed[0]} is computed by the graph" if computed else ""
    unknown = "it is transposed before it is dequantised" if view.transposed else unknown
    entry = QuantisedInput(
        node.op_type,
        {word: scope[name].key for word, name in given.items() if name in scope},
        {name: attribute.i for name, attribute in attributes.items()},
        unknown,
    )
    if found.quantised.setdefault(view.key, entry) != entry:
        found.quantised[view.key] = replace(entry, unknown="several nodes take it in different ways")
    elif node.op_type == "DequantizeLinear" and node.output and not unknown:
        scope[node.output[0]] = view


def _roles(
    node: Any, attributes: Mapping[str, Any], scope: Mapping[str, _View], tensors: Mapping[str, Any]
) -> Iterator[tuple[str, Role]]:
    """What a node says of the tensors that it takes."""

    def taken(place: int) -> _View | None:
        return scope.get(node.input[place]) if place < len(node.input) else None

    def flag(name: str) -> bool:
        return name in attributes and attributes[name].i != 0

    if node.op_type in _QUANTISED:
        weight_at, parts = _QUANTISED[node.op_type]
        weight = taken(weight_at)
        for place in parts.values():
            scale = taken(place)
            if weight is not None and scale is not None:
                reason = f"scale of the quantised {weight.key}, or what else belongs to it"
                yield scale.key, Role("companion", reason=reason, source=_SOURCE, of=weight.key)
        return
    rule = _RULES.get(node.op_type)
    if rule is None:
        return
    for place, role_for in rule.items():
        view = taken(place)
        if view is None:
            continue
        role = role_for(len(tensors[view.key].dims), flag, attributes)
        if role is not None and view.transposed and len(tensors[view.key].dims) == 2 and role.input_axes:
            yield view.key, Role(role.kind, (1 - role.input_axes[0],), source=_SOURCE)
        elif role is not None:
            yield view.key, role


_RoleFor = Callable[[int, Callable[[str], bool], Mapping[str, Any]], Role | None]


def _linear(axis: int, transposed_by: str = "") -> _RoleFor:
    """A matrix whose inputs are this axis, or the other where the node transposes it; or a stack of such."""

    def role(dimensions: int, flag: Callable[[str], bool], attributes: Mapping[str, Any]) -> Role | None:
        inputs = axis ^ int(bool(transposed_by) and flag(transposed_by))
        if dimensions == 2:
            return Role("linear", (inputs,), source=_SOURCE)
        return Role("experts", (1 + inputs,), source=_SOURCE) if dimensions == 3 else None

    return role


def _convolution(kind: str) -> _RoleFor:
    def role(dimensions: int, flag: Callable[[str], bool], attributes: Mapping[str, Any]) -> Role | None:
        if dimensions not in (3, 4, 5):
            return None
        groups = attributes["group"].i if "group" in attributes else 1
        inputs = (0,) if kind == "conv_transposed" else tuple(range(1, dimensions))
        return Role(kind, inputs, source=_SOURCE, groups=groups)

    return role


def _looked_up(dimensions: int, flag: Callable[[str], bool], attributes: Mapping[str, Any]) -> Role | None:
    along = attributes["axis"].i if "axis" in attributes else 0
    return Role("embedding", (1,), source=_SOURCE) if dimensions == 2 and along == 0 else None


def _recurrent(dimensions: int, flag: Callable[[str], bool], attributes: Mapping[str, Any]) -> Role | None:
    """Weights (directions, gates x hidden, inputs)."""
    return Role("linear", (2,), source=_SOURCE, rows=2) if dimensions == 3 else None


def _added(dimensions: int, flag: Callable[[str], bool], attributes: Mapping[str, Any]) -> Role | None:
    return Role("vector", reason="bias: added, not multiplied with", source=_SOURCE)


_RULES: Mapping[str, Mapping[int, _RoleFor]] = {
    "MatMul": {0: _linear(1), 1: _linear(0)},
    "FusedMatMul": {0: _linear(1, "transA"), 1: _linear(0, "transB")},
    "Gemm": {0: _linear(1, "transA"), 1: _linear(0, "transB"), 2: _added},
    "Attention": {1: _linear(0), 2: _added},
    "Conv": {1: _convolution("conv"), 2: _added},
    "FusedConv": {1: _convolution("conv"), 2: _added},
    "ConvTranspose": {1: _convolution("conv_transposed"), 2: _added},
    "Gather": {0: _looked_up},
    **{kind: {1: _recurrent, 2: _recurrent, 3: _added} for kind in ("LSTM", "GRU", "RNN")},
}
