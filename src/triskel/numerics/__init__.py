"""Arithmetic that all algorithms share: named tensors, scores, losses, streams of randomness."""
