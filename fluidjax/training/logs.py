"""What a run tells while it runs: metrics.jsonl, TensorBoard, a progress bar, perhaps wandb."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorboardX
from tqdm import tqdm

from fluidjax.base.files import write_text


def _drop_later_lines(path: Path, stage: str, step: int) -> None:
    """Forget lines of this stage after `step`: a resumed run writes them again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the last line of a run that was killed while writing it
            continue
        if record.get('stage') != stage or record.get('step', 0) <= step:
            kept.append(line)
    write_text(path, ''.join(line + '\n' for line in kept))


class RunLog:
    """Writes one stage's metrics; use it as a context manager.

    Args:
        workdir: the run's folder.
        stage: name of the stage, the prefix of its curves.
        start_step: the step resumed from; later lines of an interrupted run are dropped.
        total_steps: for the progress bar's estimate of the time left.
        mirror: a run of Weights & Biases that is told the same, or None.
    """

    def __init__(
        self, workdir: Path, stage: str, start_step: int, total_steps: int, mirror: Any = None
    ) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / 'metrics.jsonl'
        _drop_later_lines(path, stage, start_step)
        self._stage, self._mirror = stage, mirror
        self._lines = path.open('a', buffering=1)
        self._events = tensorboardX.SummaryWriter(
            str(workdir / 'tensorboard' / stage), purge_step=start_step + 1
        )
        quiet = not sys.stderr.isatty()
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            desc=stage,
            unit='step',
            dynamic_ncols=not quiet,
            mininterval=20.0 if quiet else 0.5,
            smoothing=0.05,
        )

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._events.close()
        self._lines.close()

    def advance(self, steps: int) -> None:
        """Some steps are on their way."""
        self._bar.update(steps)

    def write(
        self, step: int, metrics: Mapping[str, float], samples: Mapping[str, np.ndarray] = {}
    ) -> None:
        """Record the metrics of a step everywhere.

        Args:
            step: the step.
            metrics: numbers.
            samples: one number a sample, drawn as histograms; empty ones are left out.
        """
        record = {'stage': self._stage, 'step': step}
        record |= {name: float(value) for name, value in metrics.items()}
        self._lines.write(json.dumps(record) + '\n')
        for name, value in metrics.items():
            self._events.add_scalar(f'{self._stage}/{name}', float(value), step)
        for name, values in samples.items():
            if len(values):
                self._events.add_histogram(f'{self._stage}/{name}', values, step)
        if self._mirror is not None:
            self._mirror.log(
                {
                    f'{self._stage}/{name}': value
                    for name, value in record.items()
                    if name != 'stage'
                }
            )
        if 'loss' in metrics:
            self._bar.set_postfix_str(f'loss {metrics["loss"]:.4g}', refresh=False)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Show a picture `(height, width, 3)` of uint8 in TensorBoard."""
        self._events.add_image(f'{self._stage}/{name}', image, step, dataformats='HWC')


class NoLog:
    """In place of `RunLog` in the processes that do not write."""

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, steps: int) -> None:
        """Nothing."""

    def write(self, *_: object) -> None:
        """Nothing."""

    def picture(self, *_: object) -> None:
        """Nothing."""
