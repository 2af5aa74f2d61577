"""The host's sampler: one call of the model."""


def common_ksampler(model, seed, steps, cfg, sampler, scheduler, positive, negative, latent):
    return ({**latent, "samples": model.sample(latent["samples"])},)
