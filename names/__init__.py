"""What layers are called, in checkpoints, in LoRA files and in models that run. Never loads torch.

prefixes    what stands before a layer's own name
rows        one line of a table of names: a layer of a checkpoint and what diffusers calls it
auraflow, flux, hunyuan_video, krea, ltx, pixart, sd3, unet, wan, z_image    the tables, one family each
families    all tables, and which one a diffusers class has
keymap      a checkpoint's names to a model's and back, by a table
aliases     a layer's name on the other side
diffusers   which model a checkpoint with diffusers' names holds, and what ComfyUI makes of it
"""
