"""Hooks of a training run, each in a file of its own; configs/_base_/runtime.py names those that our configs use."""
