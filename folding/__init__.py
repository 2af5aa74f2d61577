"""Folds: what is known of a model's inputs, moved into the weights that produce them.

inputs   the places of a fold in a checkpoint: columns that are multiplied, rows that are divided
factors  the factors and means of each input, and what they do to tensors
coding   the factors in a header's metadata
changes  a change of an unfolded model (a LoRA's), as one of the folded

Which inputs are folded, and by what factors, the converter says (`converter.fold`, `quantize.measure`).
"""
