"""Running a float model on prompts to record what its layers see: of diffusers, of transformers."""
