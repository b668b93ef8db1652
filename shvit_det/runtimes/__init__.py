"""Other runtimes than PyTorch: writing their files and running them on arrays; it knows no detectors."""
