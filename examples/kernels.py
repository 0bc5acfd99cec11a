"""The operations alone, over NumPy arrays or anything that speaks DLPack (torch, JAX) on the CPU.

python examples/kernels.py
"""

import numpy as np

from recengine import ops

rng = np.random.default_rng(0)
print(ops.default_isa(), "of", ops.supported_isas(), "on", ops.usable_cores(), "cores")

# Two users, two tables: the rows of all bags one after the other, and how many each bag has.
words = ops.EmbeddingTable(rng.normal(size=(1000, 16)).astype(np.float32))
brands = ops.EmbeddingTable.from_array(rng.normal(size=(50, 8)), "int8")
rows = np.array([3, 14, 15, 7, 9, 2], np.int64)
lengths = np.array([[3, 1], [0, 2]], np.int32)  # [users, tables]
vectors = ops.embedding_bag([words, brands], rows, lengths, pooling="mean")  # [2, 16 + 8]
print(vectors.shape, "empty bag:", vectors[1, :3])

# The exact nearest items by cosine; the index is packed once and may be shared by threads.
index = ops.ItemIndex(rng.normal(size=(10_000, 24)).astype(np.float32))
items, scores = ops.cosine_topk(index, vectors, k=5, exclude=[[1, 2], []])  # [2, 5]
print(items)
print(scores)
