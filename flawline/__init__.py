"""Flawline inspects every frame of a mixed-product line; this package is the spine that the rooms share."""

__version__ = "0.1.0"
