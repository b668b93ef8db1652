"""Whole detectors for other runtimes: from an image tensor to boxes, labels, scores and masks in one file."""
