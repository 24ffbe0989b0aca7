"""The stages of a configuration: the methods that a run trains, in order.

The last stage is the detector; the earlier ones are what it needs: an autoencoder, a bridge. A new
method is a file in `methods/`, a function and a line in `METHODS` here (for a latent method also in
`CONDITIONS`), and a configuration; CONTRIBUTING.md, "Add a method", lists every place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from fluidjax.base.errors import UserError
from fluidjax.base.settings import check, settings_from
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.settings import FluidSettings
from fluidjax.fluid.wide import WideSettings
from fluidjax.methods import Method
from fluidjax.methods.augment import AugmentSettings
from fluidjax.methods.autoencoder import AutoencoderLoss, AutoencoderMethod
from fluidjax.methods.bridge import BridgeProcess, LatentBridge
from fluidjax.methods.corruptions import CorruptionSettings
from fluidjax.methods.ensemble import Ensemble
from fluidjax.methods.head import AnomalyHead, HeadLoss, input_channels
from fluidjax.methods.latent_diffusion import DiffusionProcess, LatentDiffusion
from fluidjax.methods.pairs import PairMaker
from fluidjax.methods.regression import Inpainting, Regression, RestorationLoss
from fluidjax.methods.severity import SeverityProcess, SeverityRestoration
from fluidjax.methods.vae import VAELoss, VAEMethod
from fluidjax.methods.variants import VariantSettings
from fluidjax.models.autoencoder import AutoencoderConfig
from fluidjax.models.image_unet import ImageUNetConfig
from fluidjax.models.unet import UNetConfig
from fluidjax.models.vae import VAEConfig
from fluidjax.synthesis.generate import SynthesisSettings
from fluidjax.training.settings import StageSettings, stage_settings

Section = ConfigDict
# How the network of each latent method is conditioned on the scan.
CONDITIONS = {
    'conddiff': ('vector', 'spatial', 'both'),
    'cldm': ('concat',),
    'ldm': ('none',),
    'icdm': ('concat',),
    'fluidjax': ('concat', 'spatial', 'both'),
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """A method, and how it is trained."""

    method: Any
    training: StageSettings


def build_stages(config: ConfigDict, grid: Grid) -> tuple[Stage, ...]:
    """The stages of a configuration on a grid, in the order of their training.

    Raises:
        UserError: naming the field that does not fit.
    """
    try:
        name = config.method
        check(name in METHODS, 'method', name, f'is not one of {", ".join(METHODS)}')
        return METHODS[name](_arranged(config), grid)
    except (AttributeError, KeyError) as error:  # a config.json edited by hand
        raise UserError(f'the configuration lacks a field: {error}; train again') from error


def longest_stage(stages: tuple[Stage, ...]) -> Stage:
    """The stage that takes most of a training, for benchmarks.

    It is the last one that trains on latents, else the last one; the head after it is small.
    """
    others = [stage for stage in stages if stage.method.stage != AnomalyHead.stage]
    latent = [stage for stage in others if stage.method.examples is not None]
    return (latent or others)[-1]


def fluid_settings(config: ConfigDict) -> FluidSettings:
    """How lesions are simulated: for training, and for the validation of all methods."""
    return settings_from(FluidSettings, config.fluid, 'fluid')


def variant_settings(config: ConfigDict) -> VariantSettings | None:
    """How healthy scans are varied for training and validation; None: not at all."""
    if 'variants' not in config:
        return None
    return settings_from(VariantSettings, config.variants, 'variants')


def synthesis_settings(config: ConfigDict) -> SynthesisSettings | None:
    """How scans are made from tissue fractions; None: they are those of the cohort."""
    if 'synthesis' not in config:
        return None
    return settings_from(SynthesisSettings, config.synthesis, 'synthesis')


def _stage(method: Any, section: Section) -> Stage:
    return Stage(method, stage_settings(section.training, method.stage))


def _pairs(config: ConfigDict, grid: Grid, randomization: Any) -> PairMaker:
    augment = settings_from(AugmentSettings, config.augment, 'augment')
    stored = config.get('stored_pairs', 0)
    if 'wide' in config and isinstance(randomization, FluidSettings):
        wide = {**config.wide, 'fluid': dataclasses.asdict(randomization)}
        randomization = settings_from(WideSettings, wide, 'wide')
    # Fresh pairs take their keys from the training step, so their method has no seed of its own.
    seed = config.seed if stored else 0
    variants, synthesis = variant_settings(config), synthesis_settings(config)
    return PairMaker(grid, augment, randomization, stored, seed, variants, synthesis)


def _autoencoder(config: ConfigDict, grid: Grid) -> Stage:
    section = config.autoencoder
    method = AutoencoderMethod(
        grid=grid,
        network=settings_from(AutoencoderConfig, section.network, 'autoencoder.network'),
        losses=settings_from(AutoencoderLoss, section.losses, 'autoencoder.losses'),
        augment=settings_from(AugmentSettings, config.augment, 'augment'),
        variants=variant_settings(config),
        synthesis=synthesis_settings(config),
    )
    return _stage(method, section)


def _unet(
    config: ConfigDict,
    section: Section,
    where: str,
    latent_shape: tuple[int, ...],
    learned_variance: bool = False,
) -> UNetConfig:
    """The sizes of a U-Net, with channels and shapes from the latents it works on."""
    network, conditions = dict(section.network), CONDITIONS[config.method]
    condition = network['condition']
    advice = (
        f'must be {" or ".join(conditions)} for the method {config.method}; choose the method '
        f"after the config file's colon, ldm.py:method={config.method}"
    )
    check(condition in conditions, f'{where}.network.condition', condition, advice)
    positioned = network.pop('position_bias') and condition in ('spatial', 'both')
    network |= {
        'in_channels': latent_shape[-1],
        'out_channels': latent_shape[-1] * (2 if learned_variance else 1),
        'position_shape': latent_shape[:3] if positioned else None,
        'condition_slices': latent_shape[0],
    }
    return settings_from(UNetConfig, network, f'{where}.network')


def _diffusion(config: ConfigDict, grid: Grid) -> tuple[Stage, ...]:
    first, section = _autoencoder(config, grid), config.diffusion
    process = settings_from(DiffusionProcess, section.process, 'diffusion.process')
    randomization = fluid_settings(config)
    if config.method == 'icdm':
        randomization = settings_from(CorruptionSettings, config.corruptions, 'corruptions')
    if config.method == 'ldm':
        randomization = None
    method = LatentDiffusion(
        autoencoder=first.method,
        network=_unet(
            config, section, 'diffusion', first.method.latent_shape, process.learned_variance
        ),
        process=process,
        pairs=_pairs(config, grid, randomization),
    )
    return _with_head(config, grid, first, _stage(method, section))


def _arranged(config: ConfigDict) -> ConfigDict:
    """The configuration with `config.convolution` in the section of every network."""
    config = config.copy_and_resolve_references()
    for section in config.values():
        if isinstance(section, ConfigDict) and 'network' in section:
            with section.network.unlocked():
                section.network.convolution = config.get('convolution', 'auto')
    return config


def _bridge(config: ConfigDict, grid: Grid) -> tuple[Stage, ...]:
    first, section = _autoencoder(config, grid), config.bridge
    method = LatentBridge(
        autoencoder=first.method,
        network=_unet(config, section, 'bridge', first.method.latent_shape),
        process=settings_from(BridgeProcess, section.process, 'bridge.process'),
        pairs=_pairs(config, grid, fluid_settings(config)),
    )
    return _with_head(config, grid, first, _stage(method, section))


def _with_head(config: ConfigDict, grid: Grid, *stages: Stage) -> tuple[Stage, ...]:
    """The stages of a method, and a head if it has one; older runs do not.

    A latent method with a head may have a regression beside it, which the head sees too.
    """
    restorer = stages[-1].method
    if 'head' not in config or config.head.training.steps == 0:
        if restorer.autoencoder is not None and _has_regression(config):
            steps = config.restoration.training.steps
            advice = 'needs a head, which sees both; set config.head.training.steps too'
            check(False, 'restoration.training.steps', steps, advice)
        return stages
    if restorer.autoencoder is not None and _has_regression(config):
        beside = _regression_beside(config, grid)
        stages = (*stages, beside)
        restorer = Ensemble((restorer, beside.method))
    return (*stages, _head(config, grid, restorer))


def _has_regression(config: ConfigDict) -> bool:
    return 'restoration' in config and config.restoration.training.steps > 0


def _regression_beside(config: ConfigDict, grid: Grid) -> Stage:
    section = config.restoration
    network = {**section.network, 'in_channels': 1}
    method = Regression(
        network=settings_from(ImageUNetConfig, network, 'restoration.network'),
        losses=settings_from(RestorationLoss, section.losses, 'restoration.losses'),
        pairs=_pairs(config, grid, fluid_settings(config)),
        identity=section.identity,
    )
    return _stage(method, section)


def _head(config: ConfigDict, grid: Grid, restorer: Method) -> Stage:
    section = config.head
    lesions = {**config.fluid, **section.get('lesions', {})}
    augment = {**config.augment, **section.get('augment', {})}
    network = {**section.network, 'in_channels': input_channels(restorer)}
    pairs = _pairs(config, grid, settings_from(FluidSettings, lesions, 'head.lesions'))
    method = AnomalyHead(
        restorer=restorer,
        network=settings_from(ImageUNetConfig, network, 'head.network'),
        losses=settings_from(HeadLoss, section.losses, 'head.losses'),
        pairs=dataclasses.replace(
            pairs, augment=settings_from(AugmentSettings, augment, 'head.augment')
        ),
    )
    return _stage(method, section)


def _vae(config: ConfigDict, grid: Grid) -> tuple[Stage, ...]:
    section = config.vae
    method = VAEMethod(
        network=settings_from(VAEConfig, {**section.network, 'shape': grid.shape}, 'vae.network'),
        losses=settings_from(VAELoss, section.losses, 'vae.losses'),
        pairs=_pairs(config, grid, None),
    )
    return (_stage(method, section),)


def _restoration(config: ConfigDict, grid: Grid) -> tuple[Stage, ...]:
    section, fluid = config.restoration, fluid_settings(config)
    kind, channels, own = Regression, 1, {}
    if config.method in ('regression', 'severity'):
        own = {'identity': section.get('identity', False)}
    if config.method == 'severity':
        kind, channels = SeverityRestoration, 2
        own['process'] = settings_from(SeverityProcess, section.process, 'restoration.process')
    if config.method == 'inpainting':
        # It learns nothing from pairs without a lesion.
        kind, channels = Inpainting, 2
        fluid = dataclasses.replace(fluid, diseased_probability=1.0)
    network = {**section.network, 'in_channels': channels}
    method = kind(
        network=settings_from(ImageUNetConfig, network, 'restoration.network'),
        losses=settings_from(RestorationLoss, section.losses, 'restoration.losses'),
        pairs=_pairs(config, grid, fluid),
        **own,
    )
    return _with_head(config, grid, _stage(method, section))


METHODS: dict[str, Callable[[ConfigDict, Grid], tuple[Stage, ...]]] = {
    'fluidjax': _bridge,
    'conddiff': _diffusion,
    'cldm': _diffusion,
    'ldm': _diffusion,
    'icdm': _diffusion,
    'vae': _vae,
    'regression': _restoration,
    'severity': _restoration,
    'inpainting': _restoration,
}
