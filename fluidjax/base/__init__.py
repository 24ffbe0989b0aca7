"""What every room may use: errors, files, settings, command lines; knows nothing of fluidjax."""

__version__ = '0.1.0'
