"""The code that a model brings: never run."""
