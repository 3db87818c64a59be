"""What a mode is as a value, and where modes are found; nothing here imports torch."""
