"""Fluid-driven anomaly randomization: lesions carried along random incompressible flows.

    from fluidjax.fluid import FluidSettings, Grid, randomize_batch
    pairs = randomize_batch(key, images, brains, Grid((40, 48, 40), (4, 4, 4)), FluidSettings())

The parts stand on their own:

    key -> draws             every random number of a pair, drawn first
        -> seeds, bank       the lesion seed P0, of Perlin `noise` or of real masks
        -> transport         dP/dt = -V . grad P + div(D grad P) along a random `flow`:
             flow_map        trace where each voxel came from, gather once
             finite_volume   the conservative right-hand side, stepped by `integrate`
             published       the published code's operator, `operators` at the voxels
        -> painting          the intensity laws
"""

from fluidjax.fluid.draws import Draw, draw_pair
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.randomize import Randomized, randomize, randomize_batch, randomize_drawn
from fluidjax.fluid.settings import FluidSettings
from fluidjax.fluid.transport import transport

__all__ = [
    'Draw',
    'FluidSettings',
    'Grid',
    'Randomized',
    'draw_pair',
    'randomize',
    'randomize_batch',
    'randomize_drawn',
    'transport',
]
