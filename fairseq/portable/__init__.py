"""Every encoder in plain PyTorch, free of the rest of fairseq: what goes along with exported weights."""
