"""Folding: what calibration knows of a model's inputs, moved into the weights that produce them.

inputs   the places of a fold in a checkpoint: columns that are multiplied, rows that are divided
find     from a preset's folds to these places, by names and shapes
factors  the factors and means of each input
algebra  what they do to a tensor
folding  all folds of a plan or of a file, and what becomes of each tensor
measure  the factors from calibration and weights
coding   the factors in a header's metadata
"""
