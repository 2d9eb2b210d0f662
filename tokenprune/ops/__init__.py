"""Pure functions of tensors and small value objects, which everything else is built from.

One file a subject: selections, token grids, guidance, k-means, the graph of clusters, ranks, damping, attention maps,
memory that keeps its address. Imports torch, einops and `tokenprune.errors`; torch-geometric inside functions. Nothing
here knows of models or hooks. Start with `selection.py`.
"""
