"""Texts that a model writes: `spec` says what the task is, `task` does it."""
