"""The cells of the benchmark, what they share, and the tables of finished ones."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest

from configs.benchmark import COMPARISON, LISTS
from data_pipelines.grids import GRIDS
from fluidjax.base.errors import UserError
from fluidjax.base.settings import save_config
from fluidjax.fluid.grid import Grid
from fluidjax.runs import length
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.stages import build_stages
from fluidjax.runs.train import _seeds
from fluidjax.sweep import cells, results
from fluidjax.training import checkpoint

CELLS = {name: cell for listed in LISTS.values() for name, cell in listed.items()}


@pytest.mark.parametrize('scale', ['smoke', 'demo'])
@pytest.mark.parametrize('name', CELLS)
def test_every_cell_builds_trained_and_as_sampled(name, scale):
    cell, grid = CELLS[name], Grid(GRIDS[scale].shape, GRIDS[scale].spacing)
    config = cells.cell_config(cell, scale, 3)
    assert config.seed == 3 and config.method == cell['method']
    trained = build_stages(config, grid)
    if cell.get('sample'):
        config.update_from_flattened_dict(cell['sample'])
        sampled = build_stages(config, grid)
        assert sampled[0] == trained[0]
        networks = [[stage.method.network for stage in stages] for stages in (sampled, trained)]
        assert networks[0] == networks[1]


def test_cells_that_differ_in_sampling_share_a_training():
    trained = {name: cells.trained_name(name, cell) for name, cell in CELLS.items()}
    assert trained['fluidjax: 1 steps'] == trained['fluidjax: 250 steps'] == 'fluidjax'
    assert trained['conddiff: T = 100'] == trained['conddiff: DDIM 5 steps'] != 'conddiff'
    other = (trained['conddiff'], trained['conddiff: spatial condition'])
    assert trained['conddiff: vector'] not in other
    assert not [name for name in trained if ',' in name]  # --cells is a list with commas
    slugs = {cells.slug(name) for name in trained}
    assert len(slugs) == len(trained)


def scored(workdir, name, seed, dice, sets=('training law',)):
    """Scores of a finished cell, as `run` writes them: eight cases a test set."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            'cohort': where,
            'method': name,
            'name': f'case{i}',
            'lesion_ml': 4.0 + 8 * i,
            'dice_validated': dice + 0.01 * rng.random(),
            'ap': dice,
            'dice_global': dice,
            'contrast_removed': 0.9,
            'healthy_changed': 0.1,
        }
        for where in sets
        for i in range(8)
    ]
    curve = {
        'threshold': [1.0, 0.0],
        'marked': [0.1, 1.0],
        'precision': [1.0, 0.1],
        'recall': [0.5, 1.0],
        'fpr': [0.0, 1.0],
        'dice': [0.6, 0.2],
    }
    path = cells.scores_path(workdir, name, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                'cell': name,
                'seed': seed,
                'training_seconds': 60.0,
                'rows': rows,
                'calibration': {},
                'recipes': {name: 'darker, 5 mm, both'},
                'validation': {name: {'dice': 0.5}},
                'curves': {where: {name: curve} for where in sets},
            }
        )
    )
    buffer = io.BytesIO()
    planes = rng.random((4, 2, 6, 7)).astype(np.float32)
    np.savez(
        buffer,
        **{
            f'{where}|{name}{end}': value
            for where in sets
            for end, value in (('', planes), ('|threshold', np.float32(0.5)))
        },
    )
    path.with_suffix('.npz').write_bytes(buffer.getvalue())


def test_tables_say_what_is_better_and_what_is_missing(tmp_path):
    for seed in (0, 1):
        scored(tmp_path, 'fluidjax', seed, 0.6, ('training law', 'patients'))
        scored(tmp_path, 'ldm', seed, 0.2)
    text = results.write(tmp_path, 'comparison', ['fluidjax', 'ldm', 'vae']).read_text()
    assert 'Not finished: vae.' in text
    assert '| fluidjax | 1 | darker, 5 mm, both | 0.500 |' in text
    assert '## Test set: training law' in text and '## Test set: patients' in text
    (line,) = [x for x in text.splitlines() if x.startswith('| ldm | 2 | +')]
    difference, p = (float(x) for x in line.split('|')[3:5])
    assert difference == pytest.approx(0.4, abs=0.01)
    assert p == pytest.approx(2 * 0.5**8, abs=5e-4)  # eight pairs, all of one sign
    (own,) = [x for x in text.splitlines() if x.startswith('| fluidjax | 0.6')][:1]
    assert '0.600' in own and '±' in own
    for kind in ('dice', 'sizes', 'curves', 'examples'):
        picture = tmp_path / 'figures-comparison' / f'training-law-{kind}.png'
        assert picture.read_bytes().startswith(b'\x89PNG')
        assert str(picture.relative_to(tmp_path)) in text


def test_scores_of_other_test_sets_are_not_mixed(tmp_path):
    for seed in (0, 1):
        scored(tmp_path, 'ldm', seed, 0.2)
    path = cells.scores_path(tmp_path, 'ldm', 1)
    assert not cells._is_scored(path, {})
    path.write_text(json.dumps({**json.loads(path.read_text()), 'version': cells.VERSION}))
    with pytest.raises(UserError, match='seed0.json: scored on the test sets of version 1'):
        results.write(tmp_path, 'comparison', ['ldm'])


def test_scores_of_other_scans_are_not_mixed(tmp_path):
    folders = []
    for number in (1, 2):
        folder = tmp_path / f'people{number}'
        folder.mkdir()
        (folder / 'a.nii').write_bytes(b'x' * number)
        folders.append(cells.Folders(healthy=str(folder)))
    assert folders[0].scans() != folders[1].scans()
    for seed, folder in enumerate(folders):
        scored(tmp_path, 'ldm', seed, 0.2)
        path = cells.scores_path(tmp_path, 'ldm', seed)
        known = {'version': cells.VERSION, 'scans': folder.scans()}
        path.write_text(json.dumps({**json.loads(path.read_text()), **known}))
        assert cells._is_scored(path, folder.scans())
        with pytest.raises(UserError, match='scored on other scans .* than these; give the same'):
            cells._is_scored(path, folders[1 - seed].scans())
    with pytest.raises(UserError, match='seed1.json: scored on other scans'):
        results.write(tmp_path, 'comparison', ['ldm'])


def test_scores_of_other_scans_are_refused_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, 'train', lambda *_: pytest.fail('trained'))
    scored(tmp_path, 'ldm', 0, 0.2)
    path = cells.scores_path(tmp_path, 'ldm', 0)
    known = {'version': cells.VERSION, 'scans': {'healthy': 'others'}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **known}))
    both = {name: COMPARISON[name] for name in ('vae', 'ldm')}
    with pytest.raises(UserError, match='seed0.json: scored on other scans'):
        cells.run(both, 'smoke', [0], tmp_path, cells.Folders())


@pytest.mark.parametrize('scale', ['smoke', 'demo', '1mm', 'paper'])
def test_every_row_has_the_same_chances(scale):
    configs = {name: cells.cell_config(cell, scale, 0) for name, cell in COMPARISON.items()}
    ours = configs['fluidjax']
    for name, config in configs.items():
        if name in ('fluidjax', 'conddiff with head', 'regression with head'):
            assert config.head.training.steps == ours.head.training.steps > 0, name
        elif 'head' in config:
            assert config.head.training.steps == 0, name
        for field, value in config.detect.map.items():
            if field not in ('sign', 'smoothing_mm'):
                assert value == ours.detect.map[field], (name, field)


def test_a_line_that_was_being_written_is_left_out(tmp_path):
    lines = [{'stage': 'vae', 'step': n, 'seconds_per_step': 2.0} for n in (10, 20)]
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (tmp_path / 'metrics.jsonl').write_text(text + '{"stage": "va')
    assert cells._metrics_of(tmp_path, 'vae') == text.splitlines(keepends=True)
    assert cells.training_seconds(tmp_path) == 40.0


def test_nothing_finished_says_so(tmp_path):
    with pytest.raises(UserError, match='no cell is finished'):
        results.write(tmp_path, 'comparison', ['vae'])


def run_at(folder, config, **steps):
    """A run of a configuration, with a checkpoint of each stage at a step, and its log."""
    save_config(folder / 'config.json', config)
    for stage, step in steps.items():
        checkpoint.save(folder / 'checkpoints' / stage, step, {'w': np.full(2, step, np.float32)})
    lines = [json.dumps({'stage': stage, 'step': step}) + '\n' for stage, step in steps.items()]
    (folder / 'metrics.jsonl').write_text(''.join(lines))


def test_a_run_starts_with_the_stages_that_another_has_finished(tmp_path):
    conddiff, headed = (
        cells.cell_config(CELLS[name], 'smoke', 3) for name in ('conddiff', 'conddiff with head')
    )
    vector = cells.cell_config(CELLS['conddiff: vector'], 'smoke', 3)
    runs = tmp_path / 'runs'
    run_at(runs / 'conddiff' / 'seed3', conddiff, autoencoder=6, diffusion=6)
    run_at(runs / 'vector' / 'seed3', vector, autoencoder=6, diffusion=6)
    cells._take_shared_stages(headed, runs / 'headed' / 'seed3', runs)
    taken = runs / 'headed' / 'seed3'
    assert {path.name for path in (taken / 'checkpoints').iterdir()} == {'autoencoder', 'diffusion'}
    stages = [json.loads(x)['stage'] for x in (taken / 'metrics.jsonl').read_text().splitlines()]
    assert stages == ['autoencoder', 'diffusion'] and not (taken / 'config.json').exists()


def test_an_autoencoder_whose_length_is_in_epochs_is_shared(tmp_path, monkeypatch):
    """At the paper's size: what a run keeps are the steps of its epochs."""

    class Begun(Exception):
        pass

    def train(config, folder):
        taken.extend(path.name for path in (folder / 'checkpoints').glob('*'))
        raise Begun

    taken = []
    monkeypatch.setattr(cells, 'train', train)
    monkeypatch.setattr(length, 'open_cohort', lambda of: SimpleNamespace(sizes={'train': 57}))
    config = cells.cell_config(CELLS['conddiff'], 'paper', 3)
    kept = length.in_steps(config, build_stages(config, model_grid(config)), 57)
    assert kept.autoencoder.training.steps == 179 != config.autoencoder.training.steps
    run_at(tmp_path / 'runs' / 'conddiff' / 'seed3', kept, autoencoder=179)
    with pytest.raises(Begun):
        cells.run({'cldm': CELLS['cldm']}, 'paper', [3], tmp_path, cells.Folders())
    assert taken == ['autoencoder']


def test_a_regression_beside_another_method_is_that_of_its_own_cell(tmp_path):
    names = ('conddiff', 'regression', 'conddiff and regression with head')
    conddiff, alone, both = (cells.cell_config(CELLS[name], 'smoke', 3) for name in names)
    alone.restoration.training.steps = both.restoration.training.steps
    runs = tmp_path / 'runs'
    run_at(runs / 'conddiff' / 'seed3', conddiff, autoencoder=6)
    run_at(runs / 'regression' / 'seed3', alone, restoration=both.restoration.training.steps)
    cells._take_shared_stages(both, runs / 'both' / 'seed3', runs)
    taken = {path.name for path in (runs / 'both' / 'seed3' / 'checkpoints').iterdir()}
    assert taken == {'autoencoder', 'restoration'}
    grid = model_grid(both)
    first, _, beside, _ = _seeds(both, build_stages(both, grid))
    assert beside == _seeds(alone, build_stages(alone, grid))[0] == first


def test_only_the_same_stages_of_the_same_scans_are_shared(tmp_path):
    config = cells.cell_config(CELLS['conddiff'], 'smoke', 3)
    run_at(tmp_path / 'begun', config, autoencoder=6, diffusion=3)
    assert cells._shared_stages(config, tmp_path / 'begun') == ['autoencoder']
    run_at(tmp_path / 'done', config, autoencoder=6, diffusion=6)
    assert cells._shared_stages(config, tmp_path / 'done') == ['autoencoder', 'diffusion']
    longer = cells.cell_config({'method': 'conddiff'}, 'smoke', 3)
    longer.autoencoder.training.steps = 12  # the same diffusion on another autoencoder
    assert cells._shared_stages(longer, tmp_path / 'done') == []
    wide = cells.cell_config(CELLS['conddiff with head: wide law'], 'smoke', 3)
    assert cells._shared_stages(wide, tmp_path / 'done') == []
    assert 'wide' in wide and 'variants' in wide and 'wide' not in config
    masks = cells.cell_config(CELLS['conddiff: masks that flow'], 'smoke', 3, 'MASKS')
    assert cells._shared_stages(masks, tmp_path / 'begun') == []
