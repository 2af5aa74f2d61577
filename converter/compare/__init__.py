"""``ctq compare``: one model run on two checkpoints."""
