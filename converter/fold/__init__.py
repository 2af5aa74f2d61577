"""Folding while converting.

find     from a preset's folds to their places in a checkpoint, by names and shapes
stats    what calibration has seen of an input, as it is behind its fold

`folding` has the places, their factors and the arithmetic; `quantize.measure` finds the factors, for which it
reads calibration and weights.
"""
