"""The job: what a run depends on, the file that says it, and a file that shows every key."""
