"""Who computes a deployed layer: torch, oneDNN or our kernels; chosen once, in choice.py."""
