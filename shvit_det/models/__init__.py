"""The networks: SHViT, its neck, RPN head and classifier, and the check that a detector's parts fit together."""
