"""Other runtimes than PyTorch: writing their files and running them on arrays; nothing here knows detectors."""
