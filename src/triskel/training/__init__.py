"""Work on one client's own texts: training, evaluation, and how fast a machine does it."""
