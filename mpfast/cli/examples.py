"""Examples of the commands: what each is for, and the arguments; shown below the help, and in the reference."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["EXAMPLES"]

#: By command: what an example is for, and what stands behind the command's name.
EXAMPLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "analyze": (
        ("a table, a page for any browser, and JSON", "model.safetensors --html report.html --json analysis.json"),
        ("the five layers that are furthest from noise", "model.safetensors --sort ks --top 5"),
        ("what fine-tuning changed", "tuned.safetensors --base base.safetensors"),
        ("several checkpoints in a build", "step-1000 step-2000 --fail-on 'stable_rank < 2' --strict"),
    ),
    "budget": (
        (
            "half of the weights, as llm-compressor reads it",
            "model --sparsity 0.5 --format llm-compressor -o recipe.yaml",
        ),
        ("by what the layers see", "model --sparsity 0.5 --method owl --moments moments.safetensors -o budget.json"),
    ),
    "moments": (("16,384 tokens of a text", "path/to/model --texts calibration.txt -o moments.safetensors"),),
    "prune": (
        ("half of each row, by magnitude", "model.safetensors -o pruned --sparsity 0.5"),
        ("2:4, what stays refitted to data", "path/to/model -o sparse --pattern 2:4 --moments moments.safetensors"),
        ("by a budget that was written before", "model -o pruned --budget budget.json"),
    ),
    "narrow": (
        ("three quarters of the neurons", "path/to/model --moments moments.safetensors -o smaller --neurons 0.75"),
    ),
    "quantize": (
        ("four bits, by what the layers see", "path/to/model --moments moments.safetensors -o packed --bits 4"),
    ),
    "ranks": (
        ("for errors of 10 % and 20 %", "model.safetensors --error 0.1 --error 0.2"),
        ("of the outputs, by what the layers see", "path/to/model --moments moments.safetensors --csv ranks.csv"),
    ),
    "compress": (
        ("as few ranks as leave an error of 30 %", "model.safetensors -o truncated --error 0.3"),
        ("a LoRA adapter of what was tuned", "tuned.safetensors --base base.safetensors -o adapter"),
    ),
    "resize": (("at most eight ranks", "path/to/adapter -o smaller --rank 8"),),
    "verify": (("several at once", "pruned truncated"),),
    "spectrum": (("a matrix that numpy.save wrote", "matrix.npy"),),
    "inspect": (
        ("what there is, from the headers", "model.safetensors"),
        ("the ten largest tensors", "model.safetensors --sort entries --top 10"),
        ("a build that wants bfloat16", "model.safetensors --fail-on 'dtype != bfloat16'"),
    ),
    "diff": (
        ("the layers that changed most", "before.safetensors after.safetensors --sort change --top 10"),
        ("two analyses that were kept", "before.json after.json --fail-on 'spikes < -2'"),
    ),
    "plot": (("two runs laid over each other", "run-1/spectral.jsonl run-2/spectral.jsonl --metric stable_rank"),),
    "bench": (("everything, in short", ""),),
    "info": (("for a report of a fault", "--json -"),),
}
