"""Lists of trials; `python -m fluidjax.sweep --config=configs/sweeps/NAME.py` runs one."""
