"""Downstream tasks: their own files in, the layout of fine-tuning out, and the datasets that read it."""
