"""Data sets of downstream tasks: their own files in, the layout of fine-tuning out."""
