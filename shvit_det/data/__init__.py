"""Data sets: the drawn sample set, a ``CocoDataset`` that checks what it loads, checks of COCO's and ImageNet's form."""
