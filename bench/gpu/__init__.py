"""The kernels on a GPU beside torch, faiss and jax."""
