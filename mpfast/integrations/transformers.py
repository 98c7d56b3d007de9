"""A callback for the Trainer of transformers."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

from mpfast.support import package_missing

if importlib.util.find_spec("transformers") is None:
    raise package_missing("mpfast.integrations.transformers", "transformers", "accelerate")

import transformers
from transformers.trainer_callback import CallbackHandler

from mpfast.integrations import monitor

__all__ = ["SpectralMonitor"]

_PRINTERS = (transformers.PrinterCallback, transformers.ProgressCallback)
# Types are checked with transformers and without.
_Callback: Any = transformers.TrainerCallback


class SpectralMonitor(monitor.SpectralMonitor, _Callback):  # type: ignore[misc]  # an unknown base
    """`mpfast.integrations.monitor.SpectralMonitor` as ``Trainer(..., callbacks=[SpectralMonitor(every=100)])``.

    The weights are measured before the first step, too: what cannot work fails there. Scalars go to
    ``state.log_history`` and to every callback that takes logs (TensorBoard, Weights & Biases), but are not printed.
    Where `should_stop` is true, the training ends. Options as there.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure what training starts from."""
        self._tell(self.measure(kwargs["model"], state.global_step), args, state, control, kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure if it is time."""
        self._tell(self.update(kwargs["model"], state.global_step), args, state, control, kwargs)

    def _tell(self, scalars: dict[str, float], args: Any, state: Any, control: Any, kwargs: dict[str, Any]) -> None:
        control.should_training_stop = control.should_training_stop or self.should_stop
        if not scalars:
            return
        state.log_history.append({**scalars, "step": state.global_step})
        for other in _others():
            if other is not self and not isinstance(other, _PRINTERS):
                other.on_log(args, state, control, logs=dict(scalars), **kwargs)


def _others() -> list[Any]:
    """All callbacks of the trainer that has called: nothing that a callback is given says whose it is."""
    frame = inspect.currentframe()
    while frame is not None:
        handler = frame.f_locals.get("self")
        if isinstance(handler, CallbackHandler):
            return list(handler.callbacks)
        frame = frame.f_back
    return []
