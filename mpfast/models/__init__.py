"""Whole models: analyse, budget, prune, compress, verify."""

from mpfast.models.analysis import analyze
from mpfast.models.budget import Budget
from mpfast.models.budget_row import LayerBudget, parsed_pattern
from mpfast.models.compression import COMPRESS_FORMATS, CompressResult, compress
from mpfast.models.exporters import DEFAULT_FORMAT, EXPORTERS, Exporter
from mpfast.models.factored_output import FACTORS_FORMAT
from mpfast.models.factoring import FactoredLayer
from mpfast.models.layer_report import SORT_COLUMNS, LayerReport, SkippedTensor, jsonable, sorted_rows
from mpfast.models.methods import DEFAULT_METHOD, METHODS, PATTERN_METHOD, Method
from mpfast.models.pruning import PruneResult, prune
from mpfast.models.result import Analysis
from mpfast.models.verification import Verification, verify

__all__ = [
    "COMPRESS_FORMATS",
    "DEFAULT_FORMAT",
    "DEFAULT_METHOD",
    "EXPORTERS",
    "FACTORS_FORMAT",
    "METHODS",
    "PATTERN_METHOD",
    "SORT_COLUMNS",
    "Analysis",
    "Budget",
    "CompressResult",
    "Exporter",
    "FactoredLayer",
    "LayerBudget",
    "LayerReport",
    "Method",
    "PruneResult",
    "SkippedTensor",
    "Verification",
    "analyze",
    "compress",
    "jsonable",
    "parsed_pattern",
    "prune",
    "sorted_rows",
    "verify",
]
