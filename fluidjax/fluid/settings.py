"""What a fluid randomization draws, as one frozen value."""

from __future__ import annotations

import dataclasses
import math

from fluidjax.errors import UserError
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.integrate import SCHEMES
from fluidjax.fluid.painting import SHIFTS

# Largest sum_k |V_k| seen over 45 flows, in units of velocity_scale * periods / extent, was 5.7.
_PEAK_SPEED = 6.0


@dataclasses.dataclass(frozen=True)
class FluidSettings:
    """Settings of the fluid-driven anomaly randomization (arXiv:2506.10233).

    Hashable, so it can be a static argument under `jax.jit`. Times and speeds are in mm and the
    paper's unit of time, so one setting means the same flow at every resolution; at 1 mm they equal
    the published ones, which count in voxels.

    Attributes:
      perlin_periods: cells of the Perlin noise of the potentials and the seeds, along x, y, z.
      velocity_scale: factor on V = curl(Psi), with Psi differentiated per mm.
      transport_time: least and greatest time a lesion is carried, drawn uniformly a sample.
      seed_percentiles: least and greatest percentile, over the brain, of a Perlin seed's threshold.
      bank_probability: share of the lesions that come from the lesion bank, where one is given.
      bank_shift_mm: how far a lesion of the bank is moved at random along each axis, mm.
      diseased_probability: share of the pairs that are diseased; the others are healthy twice.
      threshold: the lesion mask is where P reaches this share of its maximum in the brain.
      min_peak: where transport leaves less than this as the maximum of P in the brain, the lesion
        has left it, and is painted where it was seeded.
      painting: 'paper' or 'una', see `painting.paint_lesion`.
      bright_probability: share of the lesions that are brighter than the tissue.
      scheme: 'euler' or 'ssp_rk3', see `integrate`.
      cfl: Courant number of the time steps, at most 1.
      max_steps: length of the time loop; from the grid where None, see `num_steps`.

    Raises:
      UserError: naming the field that is out of range.
    """

    perlin_periods: tuple[int, int, int] = (2, 2, 2)
    velocity_scale: float = 500.0
    transport_time: tuple[float, float] = (0.1, 0.9)
    seed_percentiles: tuple[float, float] = (90.0, 99.6)
    bank_probability: float = 0.5
    bank_shift_mm: float = 8.0
    diseased_probability: float = 0.8
    threshold: float = 0.2
    min_peak: float = 0.2
    painting: str = 'paper'
    bright_probability: float = 0.0
    scheme: str = 'euler'
    cfl: float = 0.95
    max_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ('perlin_periods', 'transport_time', 'seed_percentiles'):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_ranges()
        self._check_choices()

    def _check_ranges(self) -> None:
        for name in ('bank_probability', 'diseased_probability', 'bright_probability'):
            _require(0.0 <= getattr(self, name) <= 1.0, name, self, 'give a share from 0 to 1')
        for name in ('threshold', 'min_peak', 'cfl'):
            _require(0.0 < getattr(self, name) <= 1.0, name, self, 'give a number in (0, 1]')
        for name in ('velocity_scale', 'bank_shift_mm'):
            value = getattr(self, name)
            _require(0.0 <= value <= 1e6, name, self, 'give a number from 0 to 1e6')
        low, high = _pair('transport_time', self)
        _require(0 <= low <= high and math.isfinite(high), 'transport_time', self,
                 'give the least and the greatest time, 0 or more')
        low, high = _pair('seed_percentiles', self)
        _require(0 <= low <= high < 100, 'seed_percentiles', self,
                 'give the least and the greatest percentile, from 0 to below 100')

    def _check_choices(self) -> None:
        periods = self.perlin_periods
        _require(len(periods) == 3 and all(p == int(p) and p >= 1 for p in periods),
                 'perlin_periods', self, 'give three whole numbers of 1 or more')
        for name, choices in (('painting', SHIFTS), ('scheme', SCHEMES)):
            _require(getattr(self, name) in choices, name, self,
                     f'choose one of {", ".join(choices)}')
        steps = self.max_steps
        _require(steps is None or (steps == int(steps) and steps >= 1), 'max_steps', self,
                 'give a whole number of 1 or more, or None')

    def num_steps(self, grid: Grid) -> int:
        """Length of the time loop: `max_steps`, or enough for nearly every flow on this grid.

        9 steps at 4 mm and 36 at 1 mm with the default settings on 160 mm. A flow that would
        need more is transported for a shorter time, and stays stable.
        """
        if self.max_steps is not None:
            return int(self.max_steps)
        cells_per_mm = max(p / length for p, length in zip(self.perlin_periods, grid.extent))
        rate = _PEAK_SPEED * self.velocity_scale * cells_per_mm / min(grid.spacing)
        return max(1, math.ceil(rate * self.transport_time[1] / self.cfl))


def _require(holds: bool, name: str, settings: FluidSettings, advice: str) -> None:
    if not holds:
        raise UserError(f'fluid setting {name} = {getattr(settings, name)!r}: {advice}')


def _pair(name: str, settings: FluidSettings) -> tuple[float, float]:
    value = getattr(settings, name)
    _require(len(value) == 2, name, settings, 'give two numbers')
    return value
