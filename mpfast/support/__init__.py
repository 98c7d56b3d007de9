"""What every other room uses: checks of arguments, errors, JSON read strictly, files written whole."""

import importlib
from typing import TYPE_CHECKING, Any

from mpfast.support.checks import (
    LARGEST_GROUP,
    check_flag,
    check_group,
    check_path,
    check_patterns,
    check_seed,
    check_sparsity,
    check_tolerance,
    float_array,
    floor_count,
    parsed_pattern,
    positive_integer,
    power_near,
    team_size,
    thread_count,
)
from mpfast.support.errors import (
    CheckpointError,
    ConvergenceWarning,
    InputError,
    InvalidTypeError,
    InvalidValueError,
    MissingKeyError,
    OutOfMemoryError,
    UnreadableArrayError,
    argument_called,
    front_door,
    matrix_called,
    package_missing,
    summary_of_unmet,
    warn_caller,
)
from mpfast.support.json_records import (
    MAX_DIMENSIONS,
    Record,
    is_shape,
    is_text,
    no_constant,
    parse_json,
    printable,
    read_document,
    short,
    storage_bits,
    unique_keys,
)
from mpfast.support.kept import KeptProperty
from mpfast.support.notebook import design, facts_as_html, notebook_cell, rows_as_html
from mpfast.support.wording import counted, percent, signed, with_error

if TYPE_CHECKING:
    from mpfast.support.directory_marks import MARK_FILE, read_mark, write_mark
    from mpfast.support.freed_memory import arrays_given_back, give_back_freed_memory
    from mpfast.support.log import logger
    from mpfast.support.output_directories import (
        OutputDirectory,
        claimed_directory,
        restore_directory,
        staged_directory,
    )
    from mpfast.support.safe_files import (
        named_errors,
        plain_name,
        replaced_file,
        return_or_write,
        write_bytes_atomically,
        write_text_atomically,
    )
    from mpfast.support.workers import Workers, side_by_side

__all__ = [
    "LARGEST_GROUP",
    "MARK_FILE",
    "MAX_DIMENSIONS",
    "CheckpointError",
    "ConvergenceWarning",
    "InputError",
    "InvalidTypeError",
    "InvalidValueError",
    "KeptProperty",
    "MissingKeyError",
    "OutOfMemoryError",
    "OutputDirectory",
    "Record",
    "UnreadableArrayError",
    "Workers",
    "argument_called",
    "arrays_given_back",
    "check_flag",
    "check_group",
    "check_path",
    "check_patterns",
    "check_seed",
    "check_sparsity",
    "check_tolerance",
    "claimed_directory",
    "counted",
    "design",
    "facts_as_html",
    "float_array",
    "floor_count",
    "front_door",
    "give_back_freed_memory",
    "is_shape",
    "is_text",
    "logger",
    "matrix_called",
    "named_errors",
    "no_constant",
    "notebook_cell",
    "package_missing",
    "parse_json",
    "parsed_pattern",
    "percent",
    "plain_name",
    "positive_integer",
    "power_near",
    "printable",
    "read_document",
    "read_mark",
    "replaced_file",
    "restore_directory",
    "return_or_write",
    "rows_as_html",
    "short",
    "side_by_side",
    "signed",
    "staged_directory",
    "storage_bits",
    "summary_of_unmet",
    "team_size",
    "thread_count",
    "unique_keys",
    "warn_caller",
    "with_error",
    "write_bytes_atomically",
    "write_mark",
    "write_text_atomically",
]


def __getattr__(name: str) -> Any:
    # Writing, threads and logging need more of the standard library than all the rest.
    if name in __all__:
        for file in ("safe_files", "directory_marks", "output_directories", "workers", "log", "freed_memory"):
            module = importlib.import_module(f"{__name__}.{file}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
