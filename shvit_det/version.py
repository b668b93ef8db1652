"""The version, in a file of its own so that set-up tools read it without importing torch and OpenMMLab."""

__version__ = '0.1.0'
