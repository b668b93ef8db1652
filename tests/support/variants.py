"""The published variants and the paper's figures of them."""

TINY = dict(embed_dims=(16, 24, 32), depths=(1, 2, 1), attn_dims=(8, 8, 8), query_key_dim=4)

VARIANTS = ['s1', 's2', 's3', 's4', TINY]

PAPER = {'s1': (6.3, 241, 224), 's2': (11.4, 366, 224), 's3': (14.2, 601, 224), 's4': (16.5, 986, 256)}
