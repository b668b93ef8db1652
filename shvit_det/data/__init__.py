"""Data sets: the drawn sample set, a ``CocoDataset`` that checks what it loads, and checks before a run."""
