"""Everything that docs/performance.md has to say about a GPU, in one run of a few minutes.

The rows (`gpu_rows`) are measured one after another, the most important first, in a process that
may fail: a row that does not fit in memory, or takes too long, says so in its place in the table.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

from fluidjax.base import cli
from fluidjax.base.settings import check
from fluidjax.bench import apart, gpu_rows
from fluidjax.bench.gpu_rows import COMPARED, JUDGED, ONCE, PARTS

ARRANGEMENTS = ('direct', 'taps')
PYTORCH, ONE = 'pytorch', 'auto'
FIRST, REST = ('unet', 'unet step', 'encode'), COMPARED[3:]
NO_TIME = 'no time left'
HEAD = (
    '| | parameters | TFLOP | `direct` ms | GB | `taps` ms | GB | PyTorch ms | GB '
    '| of bf16 peak | volumes/s |\n|' + '---|' * 11
)
Results = dict[str, dict[str, dict[str, Any]]]  # by row, by column


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure, and how long.

    Attributes:
        configs: configurations of `configs/ldm.py` by their titles, the most important first.
        shape: of the volumes; None for those of the configurations.
        batch: volumes per call.
        dtype: of the computation, 'bfloat16' or 'float32'.
        repeats: timed calls of each row.
        row_seconds: the longest that a row may take, with its compilation.
        minutes: the longest that all may take; rows that come too late are left out.
        only: names of rows, all of them if empty.
        anywhere: also on a device that is no GPU.
    """

    configs: Mapping[str, Any]
    shape: tuple[int, ...] | None = None
    batch: int = 1
    dtype: str = 'bfloat16'
    repeats: int = 5
    row_seconds: float = 100.0
    minutes: float = 8.0
    only: tuple[str, ...] = ()
    anywhere: bool = False

    def __post_init__(self) -> None:
        for name in ('row_seconds', 'minutes'):
            value = getattr(self, name)
            check(value > 0, name, value, 'must be above 0')
        rows = (*COMPARED, *PARTS, *JUDGED, *ONCE)
        for name in self.only:
            if name not in rows:
                raise cli.UserError(f"--only: no '{name}'; there are {', '.join(rows)}")


@dataclasses.dataclass(frozen=True)
class Job:
    """One row in one column of the table of one configuration."""

    title: str
    column: str
    row: str


def jobs_of(plan: Plan, compare: bool) -> Iterator[Job]:
    """The jobs in their order; `compare`: also those of PyTorch."""

    def chosen(title: str, rows: tuple[str, ...], *columns: str) -> Iterator[Job]:
        for row in rows:
            if not plan.only or row in plan.only:
                yield from (Job(title, column, row) for column in columns)

    theirs = (PYTORCH,) if compare else ()
    for title in plan.configs:
        yield from chosen(title, FIRST, *ARRANGEMENTS)
        yield from chosen(title, PARTS[:2], *ARRANGEMENTS)
        yield from chosen(title, ONCE[:2], ONE)
        yield from chosen(title, REST[:2], *ARRANGEMENTS)
        yield from chosen(title, (*FIRST, *REST), *theirs)
    for title in plan.configs:
        yield from chosen(title, (*REST[2:], *PARTS[2:], *JUDGED), *ARRANGEMENTS)
        yield from chosen(title, ONCE[2:], ONE)


def measure(plan: Plan) -> dict[str, Any]:
    """Measure all rows, say each on standard error, and print tables for docs/performance.md.

    Raises:
        UserError: there is no GPU.

    Returns:
        The device and versions (`gpu_rows.device`), `batch`, `dtype`, `reuse` by title, and
        `tables`: by title, row and column what `gpu_rows.measure` returns, or `error`.
    """
    deadline = time.monotonic() + 60.0 * plan.minutes
    tables: dict[str, Results] = {title: {} for title in plan.configs}
    with apart.process() as process:
        machine = process.call(gpu_rows.device, seconds=120.0)
        if not plan.anywhere and not machine['device'].startswith('gpu'):
            raise cli.UserError(
                f'JAX has no GPU here, only {machine["device"]}; to try the command without one '
                'give a small size, --config=configs/ldm.py:smoke'
            )
        cli.tell(f'{machine["device"]}, {plan.dtype}, batch {plan.batch}')
        if machine['pytorch'] is None:
            cli.tell("PyTorch is left out: pip install 'torch>=2.4' to have it beside")
        framework = ''
        for job in jobs_of(plan, machine['pytorch'] is not None):
            if (job.column == PYTORCH) != (framework == PYTORCH):
                process.end()  # the frameworks would take the device's memory from each other
            framework = job.column
            result = _measured(process, plan, job, deadline)
            tables[job.title].setdefault(job.row, {})[job.column] = result
    made = {
        **machine,
        'batch': plan.batch,
        'dtype': plan.dtype,
        'reuse': {title: reuse_of(config) for title, config in plan.configs.items()},
        'tables': tables,
    }
    print(markdown(made))
    return made


def reuse_of(config: Any) -> int:
    """For how many steps of its latent stage a configuration uses a batch of latents."""
    section = config.get('bridge') or config.get('diffusion')
    return 1 if section is None else section.training.get('reuse', 1)


def _measured(process: apart.Process, plan: Plan, job: Job, deadline: float) -> dict[str, Any]:
    seconds = min(plan.row_seconds, apart.left(deadline))
    if seconds <= 0:
        return {'error': NO_TIME}
    config = plan.configs[job.title]
    settings = (plan.shape, plan.batch, plan.repeats, plan.dtype)
    try:
        result = process.call(
            gpu_rows.measure, config, *settings, job.column, job.row, seconds=seconds
        )
        cli.tell(f'{job.title}, {job.row}, {job.column}: {result["milliseconds"]:.2f} ms')
    except apart.Failed as failed:
        late = seconds < plan.row_seconds and str(failed).startswith('more than')
        result = {'error': NO_TIME if late else str(failed)}
        cli.tell(f'{job.title}, {job.row}, {job.column}: {result["error"]}')
    return result


def markdown(made: Mapping[str, Any]) -> str:
    """The tables of what `measure` returned."""
    versions = f'JAX {made["jax"]}'
    versions += f', PyTorch {made["pytorch"]}' if made['pytorch'] else ''
    parts = []
    for title, rows in made['tables'].items():
        parts.append(
            f'### {title}: {made["device"]}, {made["dtype"]}, batch {made["batch"]}, {versions}\n'
        )
        parts += [HEAD]
        parts += [
            _row(name, columns, made['batch'], made['peak'])
            for name, columns in rows.items()
            if name not in ONCE
        ]
        parts += ['', *_summary(rows, made['batch'], made['reuse'][title]), '']
    return '\n'.join(parts)


def _row(name: str, columns: Mapping[str, Any], batch: int, peak: float | None) -> str:
    ours = [columns[c] for c in ARRANGEMENTS if 'milliseconds' in columns.get(c, {})]
    best = min(ours, key=lambda result: result['milliseconds'], default={})
    milliseconds, teraflop = best.get('milliseconds'), best.get('teraflop')
    known = milliseconds and peak and teraflop and teraflop > 0
    cells = [
        name,
        f'{best["parameters"]:,}' if best else '–',
        f'{teraflop:.3g}' if teraflop and teraflop > 0 else '–',
    ]
    for column in (*ARRANGEMENTS, PYTORCH):
        result = columns.get(column, {})
        cells += [_milliseconds(result), _number(result.get('gigabytes'), '.2f')]
    share = 1000.0 * teraflop / milliseconds / peak if known else None
    cells += [_number(share, '.0%'), _number(_per_second(batch, milliseconds), '.2f')]
    return f'| {" | ".join(cells)} |'


def _milliseconds(result: Mapping[str, Any]) -> str:
    return result['error'] if 'error' in result else _number(result.get('milliseconds'), '.1f')


def _number(value: float | None, spec: str) -> str:
    return '–' if value is None else f'{value:{spec}}'


def _per_second(batch: int, milliseconds: float | None) -> float | None:
    return 1000.0 * batch / milliseconds if milliseconds else None


def _summary(rows: Results, batch: int, reuse: int) -> Iterator[str]:
    """A step of training with reused latents, the share of randomization, and a prediction."""
    yield '| | `direct` | `taps` |\n|---|---|---|'
    alone = _time(rows, 'randomization', ONE)
    steps = {}
    for column in ARRANGEMENTS:
        fill, step = _time(rows, 'fill', column), _time(rows, 'pool step', column)
        steps[column] = None if fill is None or step is None else fill / reuse + step
    fresh = {column: _time(rows, 'new pairs step', column) for column in ARRANGEMENTS}
    for name, times, every in (
        ('a step' if reuse == 1 else f'a step, latents used {reuse} times', steps, reuse),
        ('a step on new pairs', fresh, 1),
    ):
        yield _line(f'{name}, ms', (_number(times[c], '.1f') for c in ARRANGEMENTS))
        rates = (_per_second(batch, times[c]) for c in ARRANGEMENTS)
        yield _line('volumes per second', (_number(rate, '.2f') for rate in rates))
        shares = (
            None if alone is None or times[c] is None else alone / every / times[c]
            for c in ARRANGEMENTS
        )
        yield _line('of it randomization', (_number(share, '.1%') for share in shares))
    for name, row in (
        ('randomization by itself', 'randomization'),
        ('scan to map', 'scan to map'),
        ('of it from counterpart to map', 'map'),
    ):
        yield _line(f'{name}, ms', (_milliseconds(rows.get(row, {}).get(ONE, {})), ''))


def _line(name: str, cells: Any) -> str:
    return f'| {name} | {" | ".join(cells)} |'


def _time(rows: Results, row: str, column: str) -> float | None:
    return rows.get(row, {}).get(column, {}).get('milliseconds')
