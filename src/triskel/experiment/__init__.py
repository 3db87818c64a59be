"""What a run is made of: a job, loaded; rounds; stages; comparisons."""
