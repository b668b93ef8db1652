"""Who computes a deployed layer: torch, oneDNN or our own kernels. backend_choice.py decides, for each layer once."""
