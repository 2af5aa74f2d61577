"""Bringing models to the device."""


def load_models_gpu(models, *args, **kwargs):
    for model in models:
        model.patch()


class InterruptProcessingException(Exception):
    pass


canceled = False


def throw_exception_if_processing_interrupted():
    if canceled:
        raise InterruptProcessingException
