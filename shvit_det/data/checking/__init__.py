"""Checks of data sets in COCO's form: annotations, images, and a cleaned copy."""
