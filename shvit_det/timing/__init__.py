"""Benchmarks of detectors, by part, and of backbones: time and cost. Pages of documentation are made in tools/dev."""
