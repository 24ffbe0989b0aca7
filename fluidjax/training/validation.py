"""The loss on the validation scans during a stage, and when a stage ends because of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from fluidjax.training import parallel
from fluidjax.training.checkpoint import METRIC, NoWriter, Writer
from fluidjax.training.logs import NoLog, RunLog
from fluidjax.training.settings import StageSettings
from fluidjax.training.state import TrainState
from fluidjax.training.steps import make_validation

PURPOSE = 2**31 - 1  # folded into the key; a step that no run reaches
Batches = Callable[[], Iterator[dict[str, np.ndarray]]]


class Validation:
    """Measures the validation loss of a stage, and records it beside the checkpoints.

    All processes must call it equally often, and all get the same answer.

    Args:
        method: see `fluidjax.methods`.
        settings: of the stage.
        layout: the devices.
        key: the run's key.
        batches: returns the batches of one pass over the validation scans, always the same; None if
            there are none.
        writer: of the stage's checkpoints; it knows the losses so far.
        log: of the stage.
        tell: prints a line to the terminal.
    """

    def __init__(
        self,
        method: Any,
        settings: StageSettings,
        layout: parallel.Layout,
        key: jax.Array,
        batches: Batches | None,
        writer: Writer | NoWriter,
        log: RunLog | NoLog,
        tell: Callable[[str], None],
    ) -> None:
        self._stage, self._settings, self._layout = method.stage, settings, layout
        self._every = settings.validate_every if batches is not None else 0
        self._batches, self._key = batches, jax.random.fold_in(key, PURPOSE)
        self._writer, self._log, self._tell = writer, log, tell
        loss = method.validation_loss or method.loss
        loss_of = make_validation(loss, settings.accumulate, parallel.AXIS_NAME)
        spread = (True, True, True, True, False)
        self._loss_of = parallel.data_parallel(loss_of, layout, spread)

    def is_due(self, step: int) -> bool:
        """Whether the loss is measured after a step."""
        return self._every > 0 and step > 0 and step % self._every == 0

    def catch_up(self, step: int, state: TrainState) -> bool:
        """As `measure`, if the run was ended between the checkpoint of a step and its loss."""
        missing = self.is_due(step) and step not in self._writer.losses.losses
        return self.measure(step, state) if parallel.from_first(int(missing)) else False

    def measure(self, step: int, state: TrainState) -> bool:
        """Measure and record the loss after a step, whose checkpoint has been given to the writer.

        Args:
            step: the step.
            state: on the devices; its averaged parameters are used.

        Returns:
            Whether the stage ends early (`StageSettings.patience`).

        Raises:
            UserError: the loss cannot be written.
        """
        loss = self._loss(state)
        with parallel.together():
            self._writer.record(step, loss)
            self._log.write(step, {METRIC: loss})
        ended = self._writer.losses.has_ended(self._settings.patience)
        if ended:
            self._tell(self._words(step))
        # The first process decides, because only it knows the losses from before a restart.
        return bool(parallel.from_first(int(ended)))

    def _loss(self, state: TrainState) -> float:
        """The mean loss of the averaged parameters, always with the same draws."""
        first, losses = parallel.to_devices(self._layout.first, self._layout), []
        for number, batch in enumerate(self._batches()):
            samples = parallel.to_devices(batch, self._layout)
            draw = jax.random.fold_in(self._key, number)
            losses.append(self._loss_of(state.ema, state.frozen, samples, first, draw))
        return float(np.mean([parallel.unreplicate(loss) for loss in losses]))

    def _words(self, step: int) -> str:
        losses, total = self._writer.losses, self._settings.steps
        best = losses.best(losses.losses)
        found = 'none was finite' if best is None else f'{losses.losses[best]:.4g} at step {best}'
        return (
            f'{self._stage}: ended early at step {step} of {total}, as the validation loss has not '
            f'improved in {losses.waited()} validation(s); the best: {found}'
        )
