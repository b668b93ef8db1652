"""Hooks of a training run, registered by name; configs/_base_/runtime.py lists those that our configs use."""
