"""Damaged inputs: ``python -m tests.faults.fuzz --help``."""
