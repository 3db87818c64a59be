"""Triskel: fine-tuning of language models on data that stays where it is, in three modes."""

from importlib.metadata import version

__version__ = version("triskel")
