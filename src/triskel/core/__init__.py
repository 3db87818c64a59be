"""What a mode is as a value, where modes are found, how files are read and written; no torch."""
