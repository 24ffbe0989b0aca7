"""Sweeps, run by `fluidjax sweep --config=configs/sweeps/NAME.py`."""
