"""The cells of the benchmark: a method, with changes of its training and of its sampling.

    fluidjax benchmark --scale=demo --seeds=0,1,2 --workdir=runs/benchmark

A cell is `{'method': ..., 'train': {field: value}, 'sample': {field: value}}`; fields are dotted as
on the command line. `'search': {axis: values}` limits the search for the map's recipe
(`fluidjax.detect.recipe`). Cells that differ only in `sample` or `search` share one training. With
`'bank': True` a cell also trains on real lesion masks, from a folder that the user gives. `'law'`
is the law of training (`configs/common.py`), the published one by default. With `'head': True` a
cell trains a head after its method, for as many steps as `fluidjax` at that scale.
"""

# The paper's comparison. At the demo's scale all methods are trained for as many steps on
# the same scans, and a head for as many more; at others each has the steps of its configuration.
# A head is ours, and so are the rows with one.
COMPARISON = {
    **{name: {'method': name} for name in ('fluidjax', 'conddiff')},
    'conddiff with head': {'method': 'conddiff', 'head': True},
    **{name: {'method': name} for name in ('cldm', 'ldm', 'icdm', 'vae')},
    'regression': {'method': 'regression'},
    'regression with head': {'method': 'regression', 'head': True},
    'regression from identity': {'method': 'regression', 'train': {'restoration.identity': True}},
    'severity': {'method': 'severity'},
    'inpainting': {'method': 'inpainting'},
}

# The paper's own settings on the benchmark's grid: noise prediction at uniform time steps, a vector
# as condition, 250 ancestral steps from the scan noised to step 250, residual to the scan.
PUBLISHED_PROCESS = {
    'diffusion.network.condition': 'vector',
    'diffusion.network.position_bias': False,
    'diffusion.process.prediction': 'eps',
    'diffusion.process.learned_variance': True,
    'diffusion.process.centre_latents': False,
    'diffusion.process.time_bias': 1.0,
    'diffusion.process.lesion_weight': 0.0,
}
PUBLISHED_SAMPLING = {
    'diffusion.process.start_step': 250,
    'diffusion.process.sampler': 'ddpm',
    'diffusion.process.sampler_steps': 250,
    'detect.reference': 'scan',
}
# Training for sampling from any step, instead of one step from pure noise.
UNIFORM = {'diffusion.process.time_bias': 1.0}


def _conddiff(train: dict | None = None, sample: dict | None = None) -> dict:
    return {'method': 'conddiff', 'train': train or {}, 'sample': sample or {}}


def _start(step: int, count: int = 10, **others) -> dict:
    fields = {'start_step': step, 'sampler': 'ddim', 'sampler_steps': count, **others}
    return _conddiff(UNIFORM, {f'diffusion.process.{k}': v for k, v in fields.items()})


def _used_five_times(stage: str, pool: int = 4, steps: int = 1300) -> dict:
    # All are multiples of five.
    fields = {'reuse': 5, 'pool': pool, 'steps': steps, 'log_every': 50, 'checkpoint_every': 200}
    return {f'{stage}.training.{name}': value for name, value in fields.items()}


# Real masks without transport; plain conddiff transports Perlin noise.
RAW_MASKS = {
    'fluid.bank_probability': 1.0,
    'fluid.transport_time': (0.0, 0.0),
    'fluid.bank_shift_mm': 0.0,
    'fluid.bank_rotation_degrees': 0.0,
    'fluid.bank_scale': (1.0, 1.0),
}


# The parts of a map that only some methods have, taken away from the search one at a time.
SEARCH_LIMITS = {
    'no head': {'head': ('none',)},
    'head alone': {'head': ('only',)},
    'not mirrored': {'mirror': (False,)},
    'one reference': {'reference': ('scan', 'autoencoder')},
}
# A latent method and its head together. Step counts of ablations are those of the demo's scale.
STEPS_WITH_HEAD = 1300 + 1300


def _bank(train: dict) -> dict:
    return {**_conddiff(train), 'bank': True}


ABLATIONS = {
    'conddiff as published': _conddiff(PUBLISHED_PROCESS, PUBLISHED_SAMPLING),
    'conddiff: vector': _conddiff({'diffusion.network.condition': 'vector'}),
    'conddiff: spatial condition': _conddiff({'diffusion.network.condition': 'spatial'}),
    'fluidjax: spatial condition': {
        'method': 'fluidjax',
        'train': {'bridge.network.condition': 'spatial'},
    },
    **{
        f'{method}: no lesion weight': {'method': method, 'train': {field: 0.0}}
        for method, field in (
            ('fluidjax', 'bridge.process.lesion_weight'),
            ('conddiff', 'diffusion.process.lesion_weight'),
            ('cldm', 'diffusion.process.lesion_weight'),
            ('regression', 'restoration.losses.lesion_weight'),
        )
    },
    **{
        f'fluidjax: {name}': {'method': 'fluidjax', 'search': limits}
        for name, limits in SEARCH_LIMITS.items()
    },
    'conddiff: as many steps as with a head': _conddiff(
        {'diffusion.training.steps': STEPS_WITH_HEAD}
    ),
    'conddiff and regression with head': {
        'method': 'conddiff',
        'head': True,
        'train': {'restoration.training.steps': 1300},
    },
    **{
        f'{method} with head: wide law': {'method': method, 'head': True, 'law': 'wide'}
        for method in ('regression', 'conddiff')
    },
    'conddiff with head: head alone': {
        'method': 'conddiff',
        'head': True,
        'search': SEARCH_LIMITS['head alone'],
    },
    'fluidjax: head trained on the same lesions': {
        'method': 'fluidjax',
        'train': {'head.lesions.strength': (1.0, 1.0)},
    },
    'conddiff: lesions that do not flow': _conddiff({'fluid.transport_time': (0.0, 0.0)}),
    'conddiff: raw masks': _bank(RAW_MASKS),
    'conddiff: masks that flow': _bank({'fluid.bank_probability': 1.0}),
    'conddiff: masks and Perlin noise that flow': _bank({}),
    'conddiff: one stored pair a scan': _conddiff({'stored_pairs': 1}),
    'conddiff: ten stored pairs a scan': _conddiff({'stored_pairs': 10}),
    'conddiff: published lesions': _conddiff({'fluid.seed_percentiles': (90.0, 99.6)}),
    'conddiff: latents used five times': _conddiff(_used_five_times('diffusion')),
    'fluidjax: latents used five times': {
        'method': 'fluidjax',
        'train': _used_five_times('bridge'),
    },
    # Encoding takes nearly all of the time of a step; this cell does two fifths of that of others.
    'fluidjax: latents used five times and twice the steps': {
        'method': 'fluidjax',
        'train': _used_five_times('bridge', 16, steps=2600),
    },
    **{
        f'fluidjax: {n} steps': {
            'method': 'fluidjax',
            'sample': {'bridge.process.sampler_steps': n},
        }
        for n in (1, 2, 5, 10, 50, 250)
    },
    **{f'conddiff: DDIM {n} steps': _start(1000, n) for n in (1, 2, 5, 10, 50, 250)},
    **{f'conddiff: T = {t}': _start(t) for t in (100, 250, 400, 600, 800)},
    **{f'conddiff: T = 400 and {n} seeds': _start(400, num_samples=n) for n in (2, 4, 8)},
    'conddiff: T = 250 and 400 and 600': _start(400, start_steps=(250, 400, 600)),
}

LISTS = {'comparison': COMPARISON, 'ablations': ABLATIONS}
