"""INT8 operations: tensors in, tensors out. Knows no model and no file."""
