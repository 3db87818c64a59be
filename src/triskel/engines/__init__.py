"""Drivers of the modes' generators."""
