"""Whole models: analyse, budget, prune, compress, verify."""

from mpfast.models.analysis import analyze
from mpfast.models.budget import Budget
from mpfast.models.budget_row import LayerBudget, parsed_pattern
from mpfast.models.compression import CompressResult, FactoredLayer, compress
from mpfast.models.layer_report import LayerReport, SkippedTensor, jsonable
from mpfast.models.pruning import PruneResult, prune
from mpfast.models.result import Analysis
from mpfast.models.verification import Verification, verify

__all__ = [
    "Analysis",
    "Budget",
    "CompressResult",
    "FactoredLayer",
    "LayerBudget",
    "LayerReport",
    "PruneResult",
    "SkippedTensor",
    "Verification",
    "analyze",
    "compress",
    "jsonable",
    "parsed_pattern",
    "prune",
    "verify",
]
