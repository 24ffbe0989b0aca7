"""Configurations, given to a command as `--config=configs/NAME.py:ARGUMENT`."""
