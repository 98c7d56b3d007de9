"""The weight matrices of a block, and the inputs that they are multiplied with while it runs.

Linear layers are modules, whose inputs a hook sees. Experts of one mixture are often a stack of matrices in one
parameter, of which the model takes one after the other: there the products themselves are watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mpfast.checkpoints import Role
from mpfast.integrations.torch.layers import is_transposed, watch_input

__all__ = ["Site", "experts_one_by_one", "sites_of", "watched"]


@dataclass
class Site:
    """A matrix that inputs are multiplied with.

    Attributes
    ----------
    name : str
        Of the tensor, with the number of the expert in brackets where it is one of a stack.
    tensor : str
        Of the tensor.
    parameter : Tensor
        What holds it.
    expert : int or None
        Its place in a stack.
    transposed : bool
        Whether it is stored as (in, out).
    module : Module or None
        The module whose inputs these are; None for experts of a stack.
    """

    name: str
    tensor: str
    parameter: torch.Tensor
    expert: int | None = None
    transposed: bool = False
    module: torch.nn.Module | None = field(default=None, repr=False)

    @property
    def parts(self) -> int:
        """How many matrices its tensor holds."""
        return 1 if self.expert is None else len(self.parameter)

    @property
    def stored(self) -> torch.Tensor:
        """The matrix as it is stored, a view."""
        whole = self.parameter.detach()
        return whole if self.expert is None else whole[self.expert]

    @property
    def matrix(self) -> torch.Tensor:
        """The matrix as (out, in), a view."""
        return self.stored.T if self.transposed else self.stored

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return int(self.matrix.shape[1])


def sites_of(block: torch.nn.Module, prefix: str, roles: Mapping[str, Role]) -> tuple[list[Site], dict[str, str]]:
    """Return the matrices of a block, in its order, and why other matrices of it are left alone.

    Parameters
    ----------
    block
        The module.
    prefix
        Its name in the model.
    roles
        Of the model's tensors, by name.
    """
    sites, skipped = [], {}
    for name, module in block.named_modules(prefix=prefix):
        linear = isinstance(module, torch.nn.Linear)
        for key, parameter in module._parameters.items():
            tensor = f"{name}.{key}" if name else key
            role = roles.get(tensor)
            if parameter is None or role is None or parameter.dim() < 2:
                continue
            if role.kind == "quantised":
                skipped[tensor] = role.reason
            elif key == "weight" and (linear or is_transposed(module)):
                sites.append(Site(tensor, tensor, parameter, None, not linear, module))
            elif role.kind == "experts" and len(role.input_axes) == 1:
                transposed = role.input_axes == (1,)
                sites += [Site(f"{tensor}[{e}]", tensor, parameter, e, transposed) for e in range(len(parameter))]
            elif role.kind in ("linear", "conv", "conv_transposed", "experts", "head"):
                skipped[tensor] = f"in a {type(module).__name__}, whose inputs are not watched"
    return sites, skipped


@contextmanager
def experts_one_by_one(model: torch.nn.Module) -> Iterator[None]:
    """Have the models of transformers in a model multiply with one expert after the other; what was set comes back."""
    models: list[Any] = [module for module in model.modules() if hasattr(module, "set_experts_implementation")]
    before = [part.get_experts_implementation() for part in models]
    for part in models:
        part.set_experts_implementation("eager")
    try:
        yield
    finally:
        for part, implementation in zip(models, before, strict=True):
            if implementation is not None:
                part.set_experts_implementation(implementation)


@contextmanager
def watched(sites: list[Site], see: Callable[[Site, torch.Tensor], None]) -> Iterator[None]:
    """Have ``see(site, x)`` called with the inputs of these matrices, before they are used."""
    with ExitStack() as stack:
        for site in sites:
            if site.module is not None:
                stack.callback(watch_input(site.module, partial(see, site)).remove)
        experts = {_place(site.stored): site for site in sites if site.expert is not None}
        if experts:
            stack.enter_context(_Products(experts, see))
        yield


def _place(matrix: torch.Tensor) -> tuple[Any, ...]:
    return matrix.data_ptr(), matrix.device, tuple(matrix.shape), matrix.stride()


_LINEAR = (torch.nn.functional.linear,)
_PRODUCTS = (torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__)


class _Products(TorchFunctionMode):
    """Sees the products with matrices that lie at known places."""

    def __init__(self, places: Mapping[tuple[Any, ...], Site], see: Callable[[Site, torch.Tensor], None]) -> None:
        super().__init__()
        self._places, self._see = places, see

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _LINEAR or func in _PRODUCTS:
            given = {**dict(zip(("input", "weight"), args, strict=False)), **(kwargs or {})}
            x, weight = given.get("input"), given.get("weight", given.get("other", given.get("mat2")))
            if isinstance(x, torch.Tensor) and isinstance(weight, torch.Tensor):
                site = self._places.get(_place(weight))
                # A product is with the matrix as (in, out), a linear map with (out, in).
                if site is not None and site.transposed == (func in _PRODUCTS):
                    self._see(site, x)
        return func(*args, **(kwargs or {}))
