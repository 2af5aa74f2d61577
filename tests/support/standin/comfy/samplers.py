"""The names of samplers."""


class KSampler:
    SAMPLERS = ("euler",)
    SCHEDULERS = ("simple",)
