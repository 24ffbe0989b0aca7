"""Errors, files, settings and command lines, for all other packages; it imports none of them."""

__version__ = '0.1.0'
