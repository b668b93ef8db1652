"""Training: the runner, its loop and its start; what happens at set moments of a run is in hooks/."""
