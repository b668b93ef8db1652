"""Where a detector's time goes: parts, clock, cost, report. Knows mmdet's detectors, not SHViT."""
