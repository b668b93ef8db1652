"""The networks: SHViT, its neck, RPN head and classifier, and the check that the parts of a detector agree."""
