"""Settings of the fluid randomization, as one frozen value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from fluidjax.base.settings import check
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.integrate import INTEGRATORS, STAGES
from fluidjax.fluid.painting import LAWS

SCHEMES = ('flow_map', 'koren', 'upwind')
STORAGES = ('float32', 'bfloat16')
# Points of the flow map's velocity mesh in a Perlin cell and in the ramp at the brain's border, and
# its steps while the fastest tracer crosses a cell.
_MESH_A_CELL, _MESH_A_RAMP, _STEPS_A_CELL = 16, 6, 4
# Largest sum_k |V_k| seen over 45 flows, in units of velocity_scale * periods / extent, was 5.7;
# the ramp of a confined flow adds its slope times the noise, at most about 2 x 1.5 x 0.7 x 2.
_PEAK_SPEED, _PEAK_RAMP_SPEED, _PEAK_NOISE = 6.0, 1.6, 0.75
# Limits of the fields, by kind.
_SHARES = (
    'bank_probability',
    'diseased_probability',
    'bright_probability',
    'mass_effect',
    'perlin_persistence',
)
_POSITIVE_SHARES = ('threshold', 'min_peak', 'cfl', 'inside_share')
_SIZES = (
    'velocity_scale',
    'border_mm',
    'diffusion_scale',
    'bank_shift_mm',
    'bank_rotation_degrees',
    'texture_mm',
)
_RANGES = {
    'transport_time': (0.0, 1e6),
    'seed_percentiles': (0.0, 99.999),
    'size_ml': (0.0, 1e6),
    'bank_scale': (0.01, 100.0),
    'strength': (0.0, 100.0),
    'lesion_count': (1, 64),
}
_CHOICES = {
    'painting': LAWS,
    'scheme': SCHEMES,
    'storage': STORAGES,
    'integrator': tuple(INTEGRATORS),
}


@dataclasses.dataclass(frozen=True)
class FluidSettings:
    """Settings of the fluid-driven anomaly randomization (arXiv:2506.10233).

    Hashable, so it can be a static argument under `jax.jit`. Times and speeds are in mm and the
    paper's unit of time, so one setting means the same flow at every resolution; at 1 mm they equal
    the published ones, which count in voxels.

    The flow:
      perlin_periods: cells of the Perlin noise of potentials and seeds, along x, y, z.
      perlin_octaves, perlin_persistence: patterns added, and each one's amplitude relative to the
        one before it, which has half its cells (published: 1).
      velocity_scale: factor on V = curl(Psi), with Psi differentiated per mm.
      transport_time: least and greatest time of transport, drawn uniformly per sample.
      border_mm: 0 for an open flow (published): it does not know the brain, and what it carries out
        of the brain is cut off, so that lesions at the surface lose volume. Above 0 the flow is
        confined: nothing flows through the brain's surface, lesions stay inside and keep their
        volume, and the flow is free from this depth below the surface.
      diffusion_scale: D = diffusion_scale * Phi^2, mm^2 per unit time, Phi Perlin noise; 0 for
        advection only (published code).

    The seed, a probability map P0:
      lesion_count: least and greatest number of seeds per sample.
      bank_probability: share of the seeds that come from the lesion bank, where one is given.
      seed_percentiles: least and greatest percentile, over the brain, of a Perlin seed's threshold.
      size_ml: least and greatest volume a seed is cut or scaled to, log-uniform; (0, 0) leaves
        Perlin seeds to their percentiles and masks of the bank to their size and `bank_scale`.
      bank_shift_mm, bank_rotation_degrees, bank_scale: how far a mask of the bank is moved at
        random along each axis, turned about each, and its least and greatest change of size.
      inside_share: least share of a mask of the bank that lies in the brain where it is seeded.

    The lesion:
      diseased_probability: share of the pairs that are diseased; the others are healthy twice.
      threshold: the lesion mask is where P reaches this share of its maximum in the brain.
      min_peak: if transport leaves a maximum of P in the brain below this, the lesion has left the
        brain, and is painted at its seed instead.
      painting: 'paper', 'una' or 'una_equation', see `painting.lesion_shift`.
      bright_probability: share of the lesions brighter than the tissue ('paper' and 'una').
      strength: least and greatest factor on the painted shift and its spread, so that the texture
        of a faint lesion is as faint; (1, 1) as published.
      white_matter_bright: whether white matter is brighter than grey (T1w); for 'una_equation'.
      texture_mm: length over which the lesion's texture varies; 0 for white noise (published).
      mass_effect: share of the flow's displacement that the tissue around the lesion follows; 0 as
        published.

    The numbers:
      scheme: 'flow_map', or a stepping scheme, 'koren' or 'upwind'; see `transport`.
      integrator: of the stepping schemes, 'euler', 'ssp_rk3' or 'rk4', see `integrate`.
      cfl: share of the stable time step to use, at most 1.
      max_steps: length of the time loop; from the grid where None, see `num_steps`.
      storage: 'float32' or 'bfloat16', in which a stepping scheme keeps the flow.
      parity: the published operator, angle draws and single potential instead (`published`), 3-D.

    Raises:
      UserError: naming the field that is out of range.
    """

    perlin_periods: tuple[int, ...] = (2, 2, 2)
    perlin_octaves: int = 1
    perlin_persistence: float = 0.5
    velocity_scale: float = 500.0
    transport_time: tuple[float, float] = (0.1, 0.9)
    border_mm: float = 0.0
    diffusion_scale: float = 0.0
    lesion_count: tuple[int, int] = (1, 1)
    bank_probability: float = 0.5
    seed_percentiles: tuple[float, float] = (90.0, 99.6)
    size_ml: tuple[float, float] = (0.0, 0.0)
    bank_shift_mm: float = 8.0
    bank_rotation_degrees: float = 15.0
    bank_scale: tuple[float, float] = (0.8, 1.25)
    inside_share: float = 0.6
    diseased_probability: float = 0.8
    threshold: float = 0.2
    min_peak: float = 0.2
    painting: str = 'paper'
    bright_probability: float = 0.0
    strength: tuple[float, float] = (1.0, 1.0)
    white_matter_bright: bool = True
    texture_mm: float = 0.0
    mass_effect: float = 0.0
    scheme: str = 'flow_map'
    integrator: str = 'ssp_rk3'
    cfl: float = 0.95
    max_steps: int | None = None
    storage: str = 'float32'
    parity: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        for name, holds, advice in self._rules():
            check(holds, f'fluid.{name}', getattr(self, name), advice)
        for name in ('perlin_octaves', 'max_steps'):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, int(getattr(self, name)))
        for name in ('perlin_periods', 'lesion_count'):
            object.__setattr__(self, name, tuple(int(n) for n in getattr(self, name)))

    def _rules(self) -> Iterator[tuple[str, bool, str]]:
        """For each limit the field, whether it is kept, and what the field must be."""
        for name in _SHARES:
            yield name, is_within(getattr(self, name), 0.0, 1.0), 'must be a number from 0 to 1'
        for name in _POSITIVE_SHARES:
            value = getattr(self, name)
            yield name, is_within(value, 0.0, 1.0) and value > 0, 'must be a number in (0, 1]'
        for name in _SIZES:
            yield name, is_within(getattr(self, name), 0.0, 1e6), 'must be a number from 0 to 1e6'
        for name, (least, most) in _RANGES.items():
            advice = f'must be the least and the greatest, two numbers from {least} to {most}'
            yield name, is_range(getattr(self, name), least, most), advice
        for name, choices in _CHOICES.items():
            yield name, getattr(self, name) in choices, f'must be one of {", ".join(choices)}'
        for name in ('parity', 'white_matter_bright'):
            yield name, isinstance(getattr(self, name), bool), 'must be True or False'
        for name, values, counts in (
            ('lesion_count', self.lesion_count, (2,)),
            ('perlin_periods', self.perlin_periods, (2, 3)),
        ):
            yield name, _are_counts(values, counts), 'must be whole numbers of 1 or more'
        advice = 'must be a whole number of 1 or more, or None'
        yield 'max_steps', self.max_steps is None or is_count(self.max_steps), advice
        octaves = is_count(self.perlin_octaves) and self.perlin_octaves <= 8
        yield 'perlin_octaves', octaves, 'must be a whole number from 1 to 8'
        alone = 'is not used by the published flow, parity=True; leave it as it is'
        for name, plain in (('border_mm', 0), ('diffusion_scale', 0), ('mass_effect', 0)):
            yield name, not self.parity or getattr(self, name) == plain, alone
        yield 'perlin_octaves', not self.parity or self.perlin_octaves == 1, alone
        low, high = self.size_ml
        advice = 'must be the least and the greatest volume, both above 0, or (0, 0)'
        yield 'size_ml', low > 0 or high == 0, advice

    def periods(self, ndim: int) -> tuple[int, ...]:
        """Perlin cells along the axes of a grid.

        Raises:
          UserError: fewer are given than the grid has axes.
        """
        advice = f'must have {ndim} numbers for a {ndim}-D grid'
        enough = len(self.perlin_periods) >= ndim
        check(enough, 'fluid.perlin_periods', self.perlin_periods, advice)
        return self.perlin_periods[:ndim]

    def _smallest_cell(self, grid: Grid) -> float:
        """Length of the shortest Perlin cell of the last octave, mm."""
        cells = (length / p for p, length in zip(self.periods(grid.ndim), grid.extent))
        return min(cells) / 2 ** (self.perlin_octaves - 1)

    def peak_speed(self, grid: Grid) -> float:
        """A bound of sum_k |V_k| for nearly every flow, mm per unit time."""
        octaves = sum((2.0 * self.perlin_persistence) ** o for o in range(self.perlin_octaves))
        cells = max(p / length for p, length in zip(self.periods(grid.ndim), grid.extent))
        slope = _PEAK_SPEED * octaves * cells
        if self.border_mm > 0 and not self.parity:
            slope += _PEAK_RAMP_SPEED / self.border_mm
        return self.velocity_scale * slope

    def num_steps(self, grid: Grid) -> int:
        """Length of a stepping scheme's time loop: `max_steps`, or enough for nearly every flow.

        A lesion whose flow would need more is transported for a shorter time, which stays stable.
        """
        if self.max_steps is not None:
            return self.max_steps
        faces = 2.0 if self.scheme == 'koren' and not self.parity else 1.0
        rate = faces * self.peak_speed(grid) / min(grid.spacing) + self.peak_diffusion_rate(grid)
        return max(1, math.ceil(rate * self.transport_time[1] / self.cfl))

    def peak_diffusion_rate(self, grid: Grid) -> float:
        """The largest rate of an explicit diffusion step, per unit time."""
        octaves = sum(self.perlin_persistence**o for o in range(self.perlin_octaves))
        peak = self.diffusion_scale * (_PEAK_NOISE * octaves) ** 2
        return sum(2.0 * peak / h**2 for h in grid.spacing)

    def num_stages(self, grid: Grid) -> int:
        """Right-hand sides a stepping scheme evaluates."""
        return STAGES[self.integrator] * self.num_steps(grid)

    def mesh_spacing_mm(self, grid: Grid) -> float:
        """Of the flow map's velocity mesh: what resolves a Perlin cell and the border's ramp."""
        spacing = self._smallest_cell(grid) / _MESH_A_CELL
        return min(spacing, self.border_mm / _MESH_A_RAMP) if self.border_mm > 0 else spacing

    def map_steps(self, grid: Grid, time: float | None = None) -> int:
        """Runge-Kutta steps of the flow map for a time, the longest transport where None."""
        time = self.transport_time[1] if time is None else time
        cells = self.peak_speed(grid) * time / self._smallest_cell(grid)
        return min(64, max(2, math.ceil(_STEPS_A_CELL * cells)))


def is_within(value: object, low: float, high: float) -> bool:
    """Whether a value is a number from low to high."""
    try:
        return bool(low <= value <= high)
    except (TypeError, ValueError):
        return False


def is_range(value: object, least: float, most: float) -> bool:
    """Whether a value is a pair of ascending numbers from least to most."""
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    low, high = value
    return is_within(low, least, most) and is_within(high, low, most)


def is_count(value: object) -> bool:
    """Whether a value is a whole number of 1 or more."""
    try:
        return bool(value == int(value) and value >= 1)
    except (TypeError, ValueError, OverflowError):
        return False


def _are_counts(values: object, lengths: tuple[int, ...]) -> bool:
    return isinstance(values, tuple) and len(values) in lengths and all(map(is_count, values))
