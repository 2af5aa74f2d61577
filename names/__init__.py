"""What layers are called, in checkpoints, in LoRA files and in models that run. Never loads torch.

prefixes    what stands before a layer's own name
"""
