"""Fine-tuning on many tasks with many seeds: recipes, plan, runs, table. The command is ``fairseq-glue``."""
