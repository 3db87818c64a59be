"""How sure a figure is, and a difference of two: over texts, and over seeds."""
