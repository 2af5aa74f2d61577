"""Bringing models to the device."""


def load_models_gpu(models, *args, **kwargs):
    for model in models:
        model.patch()
