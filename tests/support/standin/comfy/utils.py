"""The bar of the node that runs; `moved` keeps what it was told."""


class ProgressBar:
    moved = []  # noqa: RUF012

    def __init__(self, total):
        self.total = total
        ProgressBar.moved.clear()

    def update_absolute(self, value):
        assert value <= self.total
        ProgressBar.moved.append(value)


def load_torch_file(ckpt, safe_load=False, device=None, return_metadata=False):
    raise NotImplementedError
