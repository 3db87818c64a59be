"""One folder per framework: what it is, and both halves of it, equations at the top."""
