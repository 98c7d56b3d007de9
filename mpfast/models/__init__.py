"""Whole models: analyse, budget, prune, compress, verify."""

from mpfast.models.analysis import analyze
from mpfast.models.budget import Budget
from mpfast.models.budget_row import LayerBudget
from mpfast.models.comparison import diff
from mpfast.models.compression import COMPRESS_FORMATS, CompressResult, compress
from mpfast.models.csv_text import csv_of
from mpfast.models.diff_rows import DIFF_COLUMNS, DiffRow, diff_figures
from mpfast.models.expert_summary import (
    FENCE,
    ExpertRows,
    ExpertSummary,
    OutlyingExpert,
    Quartiles,
    split_experts,
)
from mpfast.models.exporters import DEFAULT_FORMAT, EXPORTERS, Exporter
from mpfast.models.factored_output import FACTORS_FORMAT
from mpfast.models.factoring import FactoredLayer
from mpfast.models.integer_fits import QuantizedLayer
from mpfast.models.inventory import Inventory, InventoryRow, inspect
from mpfast.models.layer_json import jsonable
from mpfast.models.layer_ranks import ranks
from mpfast.models.layer_report import (
    NUMBER_COLUMNS,
    SORT_COLUMNS,
    WORD_COLUMNS,
    LayerReport,
    distances,
    row_figures,
    signals_range,
    sorted_rows,
)
from mpfast.models.methods import DEFAULT_METHOD, DEFAULT_SHARES, METHODS, Method, method_named
from mpfast.models.model_diff import ModelDiff
from mpfast.models.module_names import body_of, module_patterns
from mpfast.models.narrow_fits import NarrowedLayer
from mpfast.models.narrowing import NarrowResult, narrow
from mpfast.models.noise_verdict import LEVELS, VERDICTS, WHAT_IS_NORMAL
from mpfast.models.ordering import in_order
from mpfast.models.output_mark import noted_source
from mpfast.models.provenance import Provenance, installed_version, provenance_of
from mpfast.models.pruning import PruneResult, prune
from mpfast.models.quantizing import QUANTIZE_FORMATS, QuantizeResult, quantize
from mpfast.models.rank_rows import LayerRank, ModelRanks, RankRow
from mpfast.models.reconstructed_output import NewTensor, write_reconstructed
from mpfast.models.refitting import DEFAULT_FIT, DEFAULT_STEPS, FITTED_METHODS, FittedMethod, damping_for
from mpfast.models.resized_factors import ResizedUpdate
from mpfast.models.resizing import ResizeResult, resize
from mpfast.models.result import ANALYSES_SCHEMA, Analysis
from mpfast.models.shared_counts import check_needs
from mpfast.models.sharing import share_out
from mpfast.models.skipped import SkippedTensor, kind_of_reason
from mpfast.models.verification import Verification, verify

__all__ = [
    "ANALYSES_SCHEMA",
    "COMPRESS_FORMATS",
    "DEFAULT_FIT",
    "DEFAULT_FORMAT",
    "DEFAULT_METHOD",
    "DEFAULT_SHARES",
    "DEFAULT_STEPS",
    "DIFF_COLUMNS",
    "EXPORTERS",
    "FACTORS_FORMAT",
    "FENCE",
    "FITTED_METHODS",
    "LEVELS",
    "METHODS",
    "NUMBER_COLUMNS",
    "QUANTIZE_FORMATS",
    "SORT_COLUMNS",
    "VERDICTS",
    "WHAT_IS_NORMAL",
    "WORD_COLUMNS",
    "Analysis",
    "Budget",
    "CompressResult",
    "DiffRow",
    "ExpertRows",
    "ExpertSummary",
    "Exporter",
    "FactoredLayer",
    "FittedMethod",
    "Inventory",
    "InventoryRow",
    "LayerBudget",
    "LayerRank",
    "LayerReport",
    "Method",
    "ModelDiff",
    "ModelRanks",
    "NarrowResult",
    "NarrowedLayer",
    "NewTensor",
    "OutlyingExpert",
    "Provenance",
    "PruneResult",
    "QuantizeResult",
    "QuantizedLayer",
    "Quartiles",
    "RankRow",
    "ResizeResult",
    "ResizedUpdate",
    "SkippedTensor",
    "Verification",
    "analyze",
    "body_of",
    "check_needs",
    "compress",
    "csv_of",
    "damping_for",
    "diff",
    "diff_figures",
    "distances",
    "in_order",
    "inspect",
    "installed_version",
    "jsonable",
    "kind_of_reason",
    "method_named",
    "module_patterns",
    "narrow",
    "noted_source",
    "provenance_of",
    "prune",
    "quantize",
    "ranks",
    "resize",
    "row_figures",
    "share_out",
    "signals_range",
    "sorted_rows",
    "split_experts",
    "verify",
    "write_reconstructed",
]
