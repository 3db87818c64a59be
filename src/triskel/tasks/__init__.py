"""One folder per task: what it is, and how its texts become tokens and targets."""
