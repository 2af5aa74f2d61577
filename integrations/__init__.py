"""Other libraries that load and save our models in their own way: diffusers and transformers.

config        what a person asks for: `CtqConfig`, one class for both
layers        which layers of a model are quantized, as what, and the rounding of one
stored        a state dict's stored layers: their tensors put together, as they come
disk          weights that wait on the disk while a model runs
diffusers     the quantizer that diffusers calls
transformers  the quantizer that transformers calls
marking       models that were quantized in place, told to their library
register      putting both into the libraries' tables

Above all other rooms but the public face (`convert_to_quant.diffusers`, `convert_to_quant.transformers`).
"""
