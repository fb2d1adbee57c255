"""Formats of other programs: one module each, which reads, writes and maps names."""
