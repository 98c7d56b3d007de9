"""A LoRA adapter of the difference of two checkpoints, as PEFT stores it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mpfast.checkpoints import (
    Checkpoint,
    Difference,
    Layer,
    SafetensorsWriter,
    TensorInfo,
    home_directory,
    read_config,
    stored_bits,
)
from mpfast.models.factoring import FactoredLayer, Factoring, Factors
from mpfast.models.skipped import SkippedTensor

__all__ = ["Orientation", "changed_tensors", "configuration_of", "head_tensors", "task_type", "write_adapter"]

# Models whose projections are transformers' Conv1D, stored as (in, out), and what those projections are called.
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_CONV1D_NAMES = ("c_attn", "c_proj", "c_fc", "q_attn")
# How the names of transformers' classes end, and what PEFT calls their tasks.
_TASKS = (
    ("ForCausalLM", "CAUSAL_LM"),
    ("LMHeadModel", "CAUSAL_LM"),
    ("ForSequenceClassification", "SEQ_CLS"),
    ("ForTokenClassification", "TOKEN_CLS"),
    ("ForQuestionAnswering", "QUESTION_ANS"),
    ("ForConditionalGeneration", "SEQ_2_SEQ_LM"),
)
# PEFT keeps the heads of these tasks whole, beside the updates, and does not load an adapter that lacks them.
_HEADED_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
_HEADS = ("classifier", "score", "qa_outputs")


def configuration_of(model: Any, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return what a model's configuration says, a live one's or that beside the weights; empty where there is none."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    if callable(to_dict):
        found = to_dict()
        if isinstance(found, dict):
            names = found.get("architectures") or [type(model).__name__]
            return {**found, "architectures": names}
    home = home_directory(checkpoint)
    return (None if home is None else read_config(home)) or {}


def task_type(configuration: Mapping[str, Any]) -> str | None:
    """Return PEFT's name of the task that a model's architecture is for; None where it has none."""
    names = configuration.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    found = next((task for end, task in _TASKS if name.endswith(end)), None)
    # Others that generate, models of images and text for one, are no pairs of encoder and decoder.
    return None if found == "SEQ_2_SEQ_LM" and configuration.get("is_encoder_decoder") is not True else found


class Orientation:
    """Which way round weights are stored: (out, in) as by `torch.nn.Linear`, or (in, out) as by transformers' Conv1D.

    Parameters
    ----------
    models
        The model and its base as they were given: what live modules are is known.
    configurations
        Theirs.
    tensors
        All tensors of the model: of GPT-2 without a configuration, shapes that are not square tell.
    """

    def __init__(
        self, models: Iterable[Any], configurations: Sequence[Mapping[str, Any]], tensors: Iterable[TensorInfo]
    ) -> None:
        self._modules: dict[str, bool] = {}
        for model in models:
            named_modules = getattr(model, "named_modules", None)
            if not isinstance(model, Mapping) and callable(named_modules):
                for name, module in named_modules():
                    kinds = {kind.__name__ for kind in type(module).__mro__}
                    if kinds & {"Conv1D", "Linear"}:
                        self._modules[name] = "Conv1D" in kinds
        self._configured = [found for found in configurations if found.get("model_type") or "fan_in_fan_out" in found]
        shapes = [info.shape for info in tensors if _is_conv1d_name(info.name) and len(info.shape) == 2]
        wide = {
            shape[1] > shape[0]
            for info in tensors
            if _is_conv1d_name(info.name) and not _module(info.name).endswith("c_proj")
            for shape in [info.shape]
            if len(shape) == 2 and shape[0] != shape[1]
        }
        self._by_shape = wide.pop() if shapes and len(wide) == 1 else None

    def is_transposed(self, name: str) -> bool | None:
        """Whether the weight of this name is stored as (in, out); None where nothing tells."""
        module = _module(name)
        if module in self._modules:
            return self._modules[module]
        if self._configured:
            if any(found.get("fan_in_fan_out") is True for found in self._configured):
                return True
            of_conv1d = any(found.get("model_type") in _CONV1D_MODELS for found in self._configured)
            return of_conv1d and _is_conv1d_name(name)
        # The names are those of GPT-2, where they may be either way round; any other's are PyTorch's.
        return self._by_shape if _is_conv1d_name(name) else False

    def is_known(self, name: str) -> bool:
        """Whether a module or a configuration says so, rather than what is usual."""
        return _module(name) in self._modules or bool(self._configured)


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _is_conv1d_name(name: str) -> bool:
    return _module(name).rpartition(".")[2] in _CONV1D_NAMES


def changed_tensors(
    checkpoint: Checkpoint, base: Checkpoint, difference: Difference, written: set[str], reasons: Mapping[str, str]
) -> tuple[SkippedTensor, ...]:
    """List the tensors that differ from the base's and are not in the adapter, and why."""
    others = {info.name: info for info in base.tensors}
    found = []
    for info in checkpoint.tensors:
        if info.name in written:
            continue
        other = others.get(info.name)
        if other is None or other.shape != info.shape:
            reason = "the base has no such tensor, or of another shape"
        elif difference.why_not(info.name) is None:
            changed = bool(np.any(difference.read(info.name)))
            difference.release(info.name)
            reason = reasons.get(info.name, "is no layer that an adapter changes") if changed else ""
        else:
            mine, its = stored_bits(checkpoint, info.name), stored_bits(base, info.name)
            same = info.dtype == other.dtype and np.array_equal(np.frombuffer(mine, "u1"), np.frombuffer(its, "u1"))
            reason = "" if same else "differs, and has no difference that is a number"
        if reason:
            found.append(SkippedTensor(info.name, info.shape, info.dtype, reason))
    return tuple(found)


def head_tensors(checkpoint: Checkpoint, task: str | None) -> list[TensorInfo]:
    """Return the tensors of the model's head, which an adapter for this task holds as they are."""
    if task not in _HEADED_TASKS:
        return []
    return [info for info in checkpoint.tensors if info.name.partition(".")[0] in _HEADS]


def write_adapter(
    factoring: Factoring,
    chosen: Sequence[Layer],
    orientation: Orientation,
    staging: Path | None,
    *,
    base_id: str | None,
    task: str | None,
) -> tuple[FactoredLayer, ...]:
    """Write a LoRA adapter as PEFT stores it: the update of a layer is ``lora_B @ lora_A``, of shape (out, in).

    Parameters
    ----------
    factoring
        With the difference.
    chosen
        The layers.
    orientation
        Which of them are stored as (in, out).
    staging
        Where to write; None: nowhere.
    base_id
        What the base is called where users get it; None: the configuration does not say.
    task
        PEFT's name of the task.
    """
    factors: list[Factors] = []
    transposed = False
    for layer in chosen:
        found = None if _stays(factoring, layer, orientation, task) else factoring.factored(layer)
        if found is not None:
            report, left, right = found
            if orientation.is_transposed(layer.name):
                transposed, left, right = True, right.T, left.T
            factors.append((report, left, right))
    if not factors or staging is None:
        return tuple(report for report, _, _ in factors)
    tensors = []
    for report, left, right in factors:
        module = f"base_model.model.{_module(report.name)}"
        tensors.append((TensorInfo(f"{module}.lora_A.weight", right.shape, "float32"), right))
        tensors.append((TensorInfo(f"{module}.lora_B.weight", left.shape, "float32"), left))
    checkpoint = factoring.checkpoint
    heads = head_tensors(checkpoint, task)
    whole = [replace(info, name=f"base_model.model.{info.name}") for info in heads]
    with SafetensorsWriter.create(
        staging / "adapter_model.safetensors", [*(info for info, _ in tensors), *whole], {"format": "pt"}
    ) as writer:
        for info, factor in tensors:
            writer.write(info.name, factor.astype(np.float32))
        for head in heads:
            writer.write(f"base_model.model.{head.name}", stored_bits(checkpoint, head.name))
    # PEFT takes the first key that a module's name ends with: the longer names first.
    ranks = {_module(report.name): report.rank for report, _, _ in factors}
    ranks = dict(sorted(ranks.items(), key=lambda entry: (-len(entry[0]), entry[0])))
    largest = max(ranks.values())
    configuration = {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base_id,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,  # alpha = r: the update is applied as it is
        "target_modules": sorted(ranks),
        "fan_in_fan_out": transposed,
        "lora_dropout": 0.0,
        "bias": "none",
        "modules_to_save": sorted({head.name.partition(".")[0] for head in heads}) or None,
        "inference_mode": True,
    }
    text = json.dumps(configuration, indent=1) + "\n"
    (staging / "adapter_config.json").write_text(text, encoding="utf-8")
    return tuple(report for report, _, _ in factors)


def _stays(factoring: Factoring, layer: Layer, orientation: Orientation, task: str | None) -> bool:
    """Enter in `skipped` why a layer can be no part of the adapter, if so."""
    reason = ""
    if orientation.is_transposed(layer.name) is None:
        reason = (
            "stored as (out, in) or, by transformers' Conv1D, as (in, out): neither its shape nor a config.json says; "
            "pass the base as a model directory or a live model"
        )
    elif task in _HEADED_TASKS and _module(layer.name).partition(".")[0] in _HEADS:
        reason = "the head of the task, which the adapter holds whole"
    if reason:
        factoring.skipped[layer.name] = reason
    return bool(reason)
