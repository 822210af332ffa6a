"""The version, where the package and the folder of a clone both read it."""

__version__ = "0.1.0"
