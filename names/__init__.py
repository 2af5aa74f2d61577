"""What layers are called, in checkpoints, in LoRA files and in models that run. Never loads torch.

prefixes    what stands before a layer's own name
rows        one line of a table of names: a layer of a checkpoint and what diffusers calls it
flux, hunyuan_video, krea, ltx, sd3, wan, z_image    the tables, one family of models each
families    all tables, and which one a diffusers class has
keymap      a checkpoint's names to a model's and back, by a table
"""
