"""Data sets as people have them: the layouts of labelling tools and other detectors, read from a folder and written.

What is found is held as COCO dicts (:mod:`.labels`). Checks of files in COCO's form are in ``data/checking/``.
"""
