"""What lies here runs inside a federation, not inside pytest."""

collect_ignore = ["intruder.py"]
