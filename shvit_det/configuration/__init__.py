"""What a config says: reading and changing it, the published configs, and the task and the data sets that it names."""
