"""A class for every text: `spec` says what the task is, `task` does it."""
