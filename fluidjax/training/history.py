"""The losses of a stage on the validation scans: its best checkpoint, and whether it ends early.

They are in `validation.json` beside the checkpoints, because a checkpoint is written before its
loss is known: what happens in validation cannot lose the steps before it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fluidjax.base.errors import UserError
from fluidjax.base.files import read_json, write_json

FILE = 'validation.json'
# A loss is better than the best one before it if it is lower by more than this part of it.
LEAST_GAIN = 1e-3
_ADVICE = 'delete it; training goes on without the losses measured so far'


@dataclasses.dataclass(frozen=True)
class History:
    """The validation losses of a stage so far.

    Attributes:
        losses: by step.
        since: the step after which validations count for `patience`; where a stage that had ended
            early was told to go on, else 0.
    """

    losses: Mapping[int, float] = dataclasses.field(default_factory=dict)
    since: int = 0

    def until(self, step: int) -> History:
        """Without the losses after a step."""
        return dataclasses.replace(self, losses={s: x for s, x in self.losses.items() if s <= step})

    def with_loss(self, step: int, loss: float) -> History:
        """With the loss of a step."""
        return dataclasses.replace(self, losses={**self.losses, step: loss})

    def best(self, steps: Collection[int]) -> int | None:
        """The one of some steps with the lowest loss; None if none of them has a finite loss."""
        finite = {s: self.losses[s] for s in steps if math.isfinite(self.losses.get(s, math.nan))}
        return min(finite, key=finite.__getitem__, default=None)

    def waited(self) -> int:
        """The number of validations since the last one with a loss better than all before."""
        best, last = math.inf, 0
        for step, loss in sorted(self.losses.items()):
            least = LEAST_GAIN * abs(best) if math.isfinite(best) else 0.0
            if loss < best - least:
                best, last = loss, step
        return sum(step > max(last, self.since) for step in self.losses)

    def has_ended(self, patience: int) -> bool:
        """Whether a stage with a `patience` (`StageSettings`) ends with the last loss."""
        return 0 < patience <= self.waited()


def read(directory: Path) -> History:
    """The history in a folder of checkpoints; an empty one if it has none.

    Raises:
        UserError: the file is damaged.
    """
    path = directory / FILE
    if not path.is_file():
        return History()
    content: dict[str, Any] = read_json(path, _ADVICE)
    try:
        losses = {int(step): float(loss) for step, loss in content['losses'].items()}
        return History(losses, int(content['since']))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f'{path}: does not contain validation losses; {_ADVICE}') from error


def write(directory: Path, history: History) -> None:
    """Write the history into a folder of checkpoints."""
    losses = {str(step): loss for step, loss in sorted(history.losses.items())}
    write_json(directory / FILE, {'losses': losses, 'since': history.since})
