"""Split learning: `spec` says what it is, `mode` does it, with `cut`, `messages` and `server`."""
