"""The commands, one module each. They import torch only once they have something to do."""
