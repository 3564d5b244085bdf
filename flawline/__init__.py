"""Flawline inspects every frame of a mixed-product line; this package is the contract between its parts."""

__version__ = "0.1.0"
