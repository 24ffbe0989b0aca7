"""Sweeps: what is tried, who does it, and how the results are shown."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
import time

import pytest
from ml_collections import ConfigDict

from fluidjax.base import trials
from fluidjax.base.errors import UserError
from fluidjax.base.settings import changed_config
from fluidjax.base.trials import Between, OneOf
from fluidjax.sweep import __main__ as command
from fluidjax.sweep import remote, report, worker
from fluidjax.sweep.store import SearchStore, TrialStore, digest

BASE = 'configs/ldm.py:smoke'
RATE = 'diffusion.training.optimizer.learning_rate'


def test_a_grid_is_every_combination():
    assert trials.grid({'a': (1, 2), 'b': ('x', 'y')}) == [
        {'a': 1, 'b': 'x'},
        {'a': 1, 'b': 'y'},
        {'a': 2, 'b': 'x'},
        {'a': 2, 'b': 'y'},
    ]


def test_a_random_search_stays_within_its_bounds_and_repeats():
    fields = {'a': Between(1e-4, 1e-1, log=True), 'b': Between(2.0, 3.0), 'c': OneOf((1, 5))}
    drawn = trials.random_search(fields, 200, seed=1)
    assert drawn == trials.random_search(fields, 200, seed=1) != trials.random_search(fields, 200)
    assert all(1e-4 <= t['a'] <= 1e-1 and 2 <= t['b'] <= 3 and t['c'] in (1, 5) for t in drawn)
    small = sum(t['a'] < 1e-3 for t in drawn)
    assert 40 < small < 95  # a third of the decades


def test_a_trial_is_its_configuration_with_fields_changed():
    config = changed_config(BASE, {RATE: 0.5, 'seed': 7})
    assert config.diffusion.training.optimizer.learning_rate == 0.5 and config.seed == 7
    with pytest.raises(UserError, match="no field 'diffusion.rate'"):
        changed_config(BASE, {'diffusion.rate': 1})
    with pytest.raises(UserError, match="no file 'configs/none.py'"):
        changed_config('configs/none.py', {})


@pytest.mark.parametrize('name', ['learning_rate', 'lesions', 'search'])
def test_the_sweeps_that_come_along_name_fields_that_are_there(checkout, name):
    import importlib.util

    path = checkout / 'configs' / 'sweeps' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sweep = module.get_config('demo').sweep
    tried = sweep.trials or [
        {
            field: where.low if isinstance(where, Between) else where.values[0]
            for field, where in sweep.search
        }
    ]
    for fields in tried:
        changed_config(sweep.base, fields)


@pytest.fixture
def quick(monkeypatch):
    """Trials that take no time: the score is the seed; seed 3 fails."""
    done = []

    def do(config, folder, saved):
        done.append(folder.name)
        if config.seed == 3:
            raise UserError('loss is nan')
        if config.seed == 2:
            raise RuntimeError('out of\nmemory')
        return {'validation_ap': float(config.seed), 'ap': 0.5}

    monkeypatch.setattr(worker, 'do_trial', do)
    return done


def store_of(workdir, seeds):
    return TrialStore(workdir, {f'trial-{s:03d}': {'seed': s} for s in seeds})


def configure(fields):
    return changed_config(BASE, fields)


def test_a_worker_does_each_trial_once_and_a_failure_stops_no_other(quick, tmp_path):
    store = store_of(tmp_path, (2, 3, 4, 5))
    worker.work(store, configure, 'validation_ap')
    worker.work(store_of(tmp_path, (2, 3, 4, 5)), configure, 'validation_ap')
    assert quick == ['trial-002', 'trial-003', 'trial-004', 'trial-005']
    results = store.results()
    assert results['trial-003']['error'] == 'loss is nan' and results['trial-005']['score'] == 5.0
    assert results['trial-002']['error'] == 'RuntimeError: out of memory'
    store.forget_failures()
    worker.work(store, configure, 'validation_ap')
    assert quick[4:] == ['trial-002', 'trial-003']


def test_without_masks_seeds_are_scored_on_validation(monkeypatch, tmp_path, capsys):
    scores = {'dice_validated': None, 'validation_dice': 0.4}
    monkeypatch.setattr(worker, 'do_trial', lambda config, folder, saved: scores)
    store = store_of(tmp_path, (1,))
    worker.work(store, configure, 'dice_validated')
    assert store.results()['trial-001']['score'] == 0.4
    assert 'no test scan has a lesion mask' in capsys.readouterr().err


def test_a_trial_of_another_worker_is_left_until_that_one_dies(quick, tmp_path):
    store = store_of(tmp_path, (4, 5))
    code = (
        'import sys, time; from fluidjax.base import files; '
        'lock = files.take_lock(__import__("pathlib").Path(sys.argv[1])); '
        'print("locked", flush=True); time.sleep(600)'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', code, tmp_path / '.claims' / 'trial-004.lock'],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'locked\n'
    worker.work(store, configure, 'validation_ap', wait=False)
    assert quick == ['trial-005']
    process.kill()
    process.wait()
    worker.work(store, configure, 'validation_ap')
    assert quick == ['trial-005', 'trial-004']


def test_optuna_proposes_and_a_dead_workers_trial_is_done_again(quick, tmp_path):
    pytest.importorskip('optuna')
    sweep = trials.sweep(
        BASE, search={'seed': OneOf((4, 5, 6)), RATE: Between(1e-4, 1e-2, True)}, count=3
    ).sweep
    first = SearchStore(tmp_path, sweep)
    begun = first.next()
    assert begun.name == 'trial-000' and set(begun.fields) == {'seed', RATE}
    begun.give_back()  # as its worker's death does
    store = SearchStore(tmp_path, sweep)
    worker.work(store, configure, 'validation_ap')
    assert quick == ['trial-000', 'trial-001', 'trial-002']
    assert store.results()['trial-000']['fields'] == begun.fields
    assert store._study.best_value == max(result['score'] for result in store.results().values())


def test_the_table_puts_seeds_together_and_the_best_first(tmp_path):
    results = {
        f'trial-{i:03d}': {
            'fields': {RATE: rate, 'seed': seed},
            'score': 0.1 * i,
            'scores': {'validation_ap': 0.1 * i, 'ap': 0.5},
        }
        for i, (rate, seed) in enumerate([(1e-3, 0), (1e-3, 1), (2e-2, 0), (2e-2, 1)])
    }
    results['trial-004'] = {'fields': {RATE: 9.0, 'seed': 0}, 'error': 'loss is nan'}
    lines = report.write(tmp_path, results, 'validation_ap').splitlines()
    assert lines[2].startswith('| 0.02 | 0.250 ± 0.071 |') and 'trial-002, trial-003' in lines[2]
    assert lines[3].startswith('| 0.001 | 0.050 ± 0.071 |')
    assert lines[4].startswith('| 9 | – |') and lines[4].endswith('| loss is nan |')
    assert (tmp_path / 'sweep.png').read_bytes().startswith(b'\x89PNG')
    assert json.loads((tmp_path / 'sweep.json').read_text()) == results


def write_scores(workdir, seed, dice):
    folder = workdir / f'seed{seed}' / 'eval'
    folder.mkdir(parents=True)
    scores = {score: {'mean': dice} for score in report.OF_SEEDS} | {'psnr': {'mean': None}}
    (folder / 'metrics.json').write_text(json.dumps({'cohort': {'conddiff': scores}}))


def test_sweep_puts_seeds_into_one_table(tmp_path):
    for seed, dice in enumerate((0.2, 0.4, 0.6)):
        write_scores(tmp_path, seed, dice)
    results = {f'seed{i}': {'fields': {'seed': i}, 'score': 0.2 * i} for i in range(3)}
    results['seed3'] = {'fields': {'seed': 3}, 'error': 'loss is nan'}
    text = report.write_seeds(tmp_path, results, 'dice_validated')
    table = json.loads((tmp_path / 'sweep.json').read_text())
    assert table['cohort/conddiff']['ap'] == [0.2, 0.4, 0.6]
    assert (tmp_path / 'sweep.md').read_text() == text
    row = text.splitlines()[2]
    assert row.startswith('| cohort/conddiff | 0.400 ± 0.200 |') and row.endswith('| – |')
    assert len({line.count('|') for line in text.splitlines()}) == 1


def test_several_slices_share_the_trials_out_and_bring_scans():
    tpus = remote.Tpus(('a', 'b'), 'us-central2-b', 'brains')
    commands = tpus.start_commands(['--config=c.py', '--workdir=gs://x/y'], 'gs://x/t1')
    assert len(commands) == 1 + 2 * 4
    assert all(
        '--worker=all' in c and '--zone=us-central2-b' in c and '--project=brains' in c
        for c in commands[1:]
    )
    assert '--share=1/2' in commands[-1][-1] and '$? = 75' in commands[-1][-1]
    assert 'rsync --recursive gs://x/t1 scans' in commands[-2][-1]


def test_a_slice_is_let_go_when_its_sweep_has_begun(tmp_path):
    """Its command returns while the sweep goes on, and the next slice can begin."""
    (tmp_path / 'fluidjax').mkdir()
    script = tmp_path / 'fluidjax' / 'run.sh'
    script.write_text('#!/bin/sh\ntouch begun\nsleep 8\n')
    script.chmod(0o755)
    start = remote.Tpus(('a',), 'z').start_commands(['--workdir=gs://x/y'])[-1][-1]
    subprocess.run(
        ['bash', '-c', start.removeprefix('--command=')],
        cwd=tmp_path,
        timeout=5,
        capture_output=True,
        check=True,
    )
    deadline = time.monotonic() + 5
    while not (tmp_path / 'fluidjax' / 'begun').exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ('words', 'kept', 'also'),
    [
        (
            '--config=configs/ldm.py:smoke --seeds 0 1 --workers 2 --workdir=x',
            '--config=configs/ldm.py:smoke --seeds 0 1 --workdir=x',
            (),
        ),
        (
            '--config c.py --dry_run --slurm --retry --workdir tpu',
            '--config c.py --workdir tpu',
            ('retry',),
        ),
        ('--tpu a b c --zone=z --retry --seeds 0 1', '--retry --seeds 0 1', ()),
        ('--noslurm --tpu a --zone=z --config.seed=3 --sbatch "-p gpu"', '--config.seed=3', ()),
    ],
)
def test_workers_are_given_the_words_of_the_user(monkeypatch, words, kept, also):
    monkeypatch.setattr(sys, 'argv', ['fluidjax sweep', *shlex.split(words)])
    assert command._worker_arguments(*also) == shlex.split(kept)


@pytest.fixture
def sweep(monkeypatch, checkout, tmp_path):
    """Call `main` with flags, as a command of its own; seed 0 has failed before."""
    spec = importlib.util.spec_from_file_location('sweep_command', command.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path / 'seed0' / 'trial.json'
    path.parent.mkdir()
    path.write_text('{"fields": {"seed": 0}, "error": "out of memory"}')

    def call(*words):
        config = f'--config={checkout}/configs/ldm.py:smoke'
        words = ['sweep', config, f'--workdir={tmp_path}', '--seeds=0', '--retry', *words]
        monkeypatch.setattr(sys, 'argv', words)
        module.FLAGS(words)
        module.main()

    return call


def fail_again(store):
    store.finish(store.next(), {'error': 'out of memory again'})


def test_a_trial_that_failed_is_repeated_once_by_the_workers(sweep, quick, tmp_path, monkeypatch):
    given = []

    def start_workers(count, arguments, workdir):
        given.append(arguments)
        fail_again(TrialStore(workdir, {'seed0': {'seed': 0}}))  # the old failure is forgotten

    monkeypatch.setattr(worker, 'start_workers', start_workers)
    with pytest.raises(UserError, match='1 of 1 trials failed.*out of memory again'):
        sweep('--workers=2')
    assert quick == [] and '--retry' not in given[0]


def test_a_trial_that_failed_is_repeated_once_by_the_jobs(sweep, tmp_path, monkeypatch):
    submitted, path = [], tmp_path / 'seed0' / 'trial.json'
    monkeypatch.setattr(remote, 'submit', lambda *of: submitted.append((of[0], path.exists())))
    sweep('--slurm', '--dry-run')
    assert path.exists()  # nothing is changed by showing
    sweep('--slurm', '--nodry-run')
    (_, kept), (script, there) = submitted
    assert kept and not there and '--retry' not in script


def test_a_trial_that_failed_is_repeated_without_workers(sweep, quick, monkeypatch):
    with pytest.raises(UserError, match='1 of 1 trials failed'):  # it has no such score
        sweep()
    assert quick == ['seed0']


def test_results_of_another_configuration_are_refused(tmp_path):
    store = store_of(tmp_path, [0, 1])
    configure = lambda fields: ConfigDict({'steps': 10, **fields})
    done = {'score': 0.5, 'scores': {}, 'config': digest(configure({'seed': 0}))}
    store.finish(store.next(), done)
    store.finish(store.next(), {'error': 'broken'})
    store.refuse_another_sweep(configure)
    with pytest.raises(UserError, match='trial-000: is the trial of another configuration'):
        store.refuse_another_sweep(lambda fields: ConfigDict({'steps': 20, **fields}))
    with pytest.raises(UserError, match='trial-000: is the trial of another configuration'):
        TrialStore(tmp_path, {'trial-000': {'seed': 7}}).refuse_another_sweep(configure)


def test_a_sweep_by_an_unknown_score_is_refused():
    command._check_sweep('validation_ap')
    with pytest.raises(UserError, match="no score 'validation_aq'; there are validation_ap"):
        command._check_sweep('validation_aq')
