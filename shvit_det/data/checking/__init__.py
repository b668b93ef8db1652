"""What is wrong with a data set in COCO's form: pure checks of its JSON, a check of its images, and a cleaned copy."""
