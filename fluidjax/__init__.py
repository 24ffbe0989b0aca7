"""fluidjax: find what is abnormal in a brain scan, trained on healthy brains alone.

Conditional latent diffusion with fluid-driven anomaly randomization (arXiv:2506.10233) in JAX.
Importing this package is light: neither JAX nor TensorFlow is loaded before it is needed.
"""

__version__ = '0.1.0'
