"""Data sets: the drawn sample set, a ``CocoDataset`` that checks what it loads, and checks of COCO's and ImageNet's form."""
