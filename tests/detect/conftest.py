"""Small test subjects with known lesions."""

from subjects import make_case  # noqa: F401
