"""Training: fit both models, evaluate them, keep them as a checkpoint without pickle."""
