"""A callback for Lightning's Trainer, of the package ``lightning``, or of ``pytorch_lightning`` where that is alone."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from mpfast.integrations import monitor
from mpfast.support import package_missing

__all__ = ["SpectralMonitor"]

_PACKAGES = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
_found = next((module for name, module in _PACKAGES.items() if importlib.util.find_spec(name)), None)
if _found is None:
    raise package_missing("mpfast.integrations.lightning", "lightning")
_Callback: Any = importlib.import_module(_found).Callback


class SpectralMonitor(monitor.SpectralMonitor, _Callback):  # type: ignore[misc]  # an unknown base
    """`mpfast.integrations.monitor.SpectralMonitor` as ``Trainer(callbacks=[SpectralMonitor(every=100)])``.

    The weights are measured before the first step, too: what cannot work fails there. Scalars go to all loggers of the
    trainer, at the step that was measured. Where `should_stop` is true, the training ends. Options as there.
    """

    _seen = -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measure what training starts from."""
        self._seen = trainer.global_step
        self._tell(self.measure(pl_module, trainer.global_step), trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure if it is time; batches whose gradients are only accumulated are no steps."""
        if trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        self._tell(self.update(pl_module, trainer.global_step), trainer)

    def _tell(self, scalars: dict[str, float], trainer: Any) -> None:
        if scalars:
            for log in trainer.loggers:
                log.log_metrics(scalars, step=trainer.global_step)
        trainer.should_stop = trainer.should_stop or self.should_stop
