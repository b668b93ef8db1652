"""Trained models as files for other runtimes: whole detectors, or parts of a model for phones."""
