"""Ways to make one of many."""
