"""What a job costs, known before anything runs: memory, and what one client sends."""
