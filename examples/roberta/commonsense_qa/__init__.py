"""Old place of the task ``commonsense_qa``, which is built in now: ``--user-dir`` may still name this directory."""
