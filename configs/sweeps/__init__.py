"""Lists of trials; `fluidjax sweep --config=configs/sweeps/NAME.py` runs one."""
