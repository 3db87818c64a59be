"""One file per framework: both halves of it, equations at the top, exchange visible."""
