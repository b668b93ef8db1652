"""What the tools run: configs, checks before the start, the runner, the report at the end."""
