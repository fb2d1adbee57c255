"""Checkpoints: what is in them, writing them safely, reading old and new ones without executing anything."""
