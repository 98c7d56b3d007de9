"""What processes that train together tell each other: rank 0 measures, the others hand over their shares of weights."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

__all__ = ["Verdict", "heard", "process_count", "process_rank", "tell"]


class Verdict(NamedTuple):
    """What rank 0 says when it has measured: whether to stop, and what went wrong, empty where nothing did."""

    should_stop: bool
    failure: str


def process_rank() -> int:
    """Rank of this process in ``torch.distributed``; 0 where there is one process."""
    distributed = _distributed()
    return 0 if distributed is None else int(distributed.get_rank())


def process_count() -> int:
    """Number of processes in ``torch.distributed``."""
    distributed = _distributed()
    return 1 if distributed is None else int(distributed.get_world_size())


def tell(message: str | Verdict) -> None:
    """Say to all others which layer is gathered next, or how the measurement ended; on rank 0."""
    _broadcast(message)


def heard() -> str | Verdict:
    """Return what rank 0 tells; on the other ranks, as often as it tells something."""
    message: str | Verdict = _broadcast(None)
    return message


def _broadcast(message: Any) -> Any:
    distributed = _distributed()
    if distributed is None or distributed.get_world_size() == 1:
        return message
    box = [message]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def _distributed() -> Any:
    # Who trains on several processes has imported it.
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed
