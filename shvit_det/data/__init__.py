"""Data: the drawn sample set that stands in for COCO until COCO is there."""
