"""Data: the drawn sample set that stands in for COCO until COCO is there, and what is wrong with data of one's own."""
