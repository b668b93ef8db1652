"""Evaluation of a checkpoint or an exported file on the data of a config, and pages that show errors and data."""
