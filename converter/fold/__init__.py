"""Folding: what calibration knows of a model's inputs, moved into the weights that produce them.

inputs   the places of a fold in a checkpoint: columns that are multiplied, rows that are divided
find     from a preset's folds to these places, by names and shapes
factors  the factors and means of each input, and what they do to tensors
coding   the factors in a header's metadata

`quantize.measure` finds the factors, for which it reads calibration and weights.
"""
