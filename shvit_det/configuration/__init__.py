"""What a config says: reading and changing it, our published configs, and its kind of model and data sets."""
