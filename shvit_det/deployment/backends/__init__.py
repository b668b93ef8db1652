"""Who computes a deployed layer: torch, oneDNN or our own kernels. choice.py decides, for each layer once."""
