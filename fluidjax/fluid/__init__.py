"""Fluid-driven anomaly randomization: lesions carried along random incompressible flows.

    from fluidjax.fluid import FluidSettings, Grid, randomize_batch
    pairs = randomize_batch(key, images, brains, Grid((40, 48, 40), (4, 4, 4)), FluidSettings())

The parts stand on their own: `noise` (Perlin), `operators` (curl, upwind advection), `integrate`
(schemes and the time loop), `bank` (real lesion masks), `painting` (intensity laws).
"""

from fluidjax.fluid.grid import Grid
from fluidjax.fluid.randomize import Randomized, randomize, randomize_batch
from fluidjax.fluid.settings import FluidSettings

__all__ = ['FluidSettings', 'Grid', 'Randomized', 'randomize', 'randomize_batch']
