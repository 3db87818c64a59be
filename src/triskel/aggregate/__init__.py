"""Many updates into one: a fold over sections, and the server's step after it."""
