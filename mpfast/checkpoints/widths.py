"""Where the neurons and the heads of a block are, and what counts them: data, by ``model_type`` of ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["WIDTHS", "Units", "Widths"]


@dataclass(frozen=True)
class Units:
    """What one matrix of a block reads and others write: neurons, or heads.

    Attributes
    ----------
    reader : str
        Name of the matrix, within its block, whose inputs they are.
    writers : mapping of str to int
        Names of the matrices whose outputs they are, and how many of these lie one below the other in a tensor.
    """

    reader: str
    writers: Mapping[str, int]


@dataclass(frozen=True)
class Widths:
    """How the models of one ``model_type`` count what their blocks have inside.

    Attributes
    ----------
    neurons : Units
        Of the feed-forward layers.
    size : str
        Setting that counts them.
    heads : Units or None
        The outputs of attention. Whole groups of these go: a head of keys and values with the heads of queries that it
        serves.
    no_heads : str
        Why heads cannot go, where `heads` is None.
    hidden_by_heads : bool
        Whether transformers takes no number of heads that does not divide the hidden size, whatever ``head_dim`` says.
    """

    neurons: Units
    size: str = "intermediate_size"
    heads: Units | None = None
    no_heads: str = ""
    hidden_by_heads: bool = False


_ONE_SIZE = "its configuration has no setting for the size of a head beside that of the hidden states"
_FUSED = "its queries, keys and values are one matrix"
_SQUARE = "the output of its attention has the size of the hidden states, however many heads there are"
_NORMALISED = "its queries and keys are normalised over all heads together"


def _units(reader: str, *writers: str, matrices: int = 1) -> Units:
    return Units(reader, MappingProxyType(dict.fromkeys(writers, matrices)))


def _each(names: str, widths: Widths) -> dict[str, Widths]:
    return dict.fromkeys(names.split(), widths)


_HEADS = _units("self_attn.o_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = _units("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj")
_LLAMA = Widths(_GATED, heads=_HEADS)
_LLAMA_BY_HEADS = Widths(_GATED, heads=_HEADS, hidden_by_heads=True)
_BERT = Widths(_units("output.dense", "intermediate.dense"), no_heads=_ONE_SIZE)

#: One entry per family whose blocks are known.
WIDTHS: Mapping[str, Widths] = MappingProxyType(
    {
        **_each("ernie4_5 gemma granite ministral mistral olmo qwen2 qwen3 smollm3", _LLAMA),
        **_each("gemma2 gemma3_text llama", _LLAMA_BY_HEADS),
        "helium": Widths(_GATED, no_heads=_SQUARE),
        "olmo2": Widths(_GATED, no_heads=_NORMALISED),
        "phi3": Widths(_units("mlp.down_proj", "mlp.gate_up_proj", matrices=2), no_heads=_FUSED),
        "starcoder2": Widths(_units("mlp.c_proj", "mlp.c_fc"), heads=_HEADS),
        "gpt2": Widths(_units("mlp.c_proj", "mlp.c_fc"), "n_inner", no_heads=_FUSED),
        "gpt_neox": Widths(_units("mlp.dense_4h_to_h", "mlp.dense_h_to_4h"), no_heads=_FUSED),
        "opt": Widths(_units("fc2", "fc1"), "ffn_dim", no_heads=_ONE_SIZE),
        "phi": Widths(_units("mlp.fc2", "mlp.fc1"), no_heads=_ONE_SIZE),
        **_each("bert camembert electra mpnet roberta xlm-roberta", _BERT),
        "distilbert": Widths(_units("ffn.lin2", "ffn.lin1"), "hidden_dim", no_heads=_ONE_SIZE),
        "modernbert": Widths(_units("mlp.Wo", "mlp.Wi", matrices=2), no_heads=_FUSED),
    }
)
