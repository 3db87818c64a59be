"""Parameter exchange: `spec` says what it is, `mode` does it."""
