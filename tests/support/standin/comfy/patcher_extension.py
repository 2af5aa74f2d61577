"""Wrappers around a call of the model: each is called with the next one."""


class WrappersMP:
    APPLY_MODEL = "apply_model"


class WrapperExecutor:
    def __init__(self, original, class_obj, wrappers):
        self.original, self.class_obj, self.wrappers = original, class_obj, wrappers

    def __call__(self, *args, **kwargs):
        if not self.wrappers:
            return self.original(*args, **kwargs)
        rest = WrapperExecutor(self.original, self.class_obj, self.wrappers[1:])
        return self.wrappers[0](rest, *args, **kwargs)
