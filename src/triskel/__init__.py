"""Triskel: federated fine-tuning of language models in three arms, parameters, predictions and split."""

from importlib.metadata import version

__version__ = version("triskel")
