"""Loading with patches applied."""


def load_models_gpu(models, force_patch_weights=False):
    assert force_patch_weights
    for model in models:
        model.patch()
