"""Whatever can be multiplied with, as the numerical methods see it."""

from mpfast.operators.dask import aligned
from mpfast.operators.gram import gram_product
from mpfast.operators.host import MatrixSource, values_together
from mpfast.operators.of_outputs import InputRoot, OutputSource
from mpfast.operators.opening import open_source
from mpfast.operators.protocol import PART_WIDTH, RUN_WIDTH, LanczosRun, Source, gram_memory, start_run
from mpfast.operators.restricted import RestrictedSource
from mpfast.operators.scaling import energies, scaled

__all__ = [
    "PART_WIDTH",
    "RUN_WIDTH",
    "InputRoot",
    "LanczosRun",
    "MatrixSource",
    "OutputSource",
    "RestrictedSource",
    "Source",
    "aligned",
    "energies",
    "gram_memory",
    "gram_product",
    "open_source",
    "scaled",
    "start_run",
    "values_together",
]
