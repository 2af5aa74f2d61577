"""Weights read in rows: the original's as floats, the quantized file's as its layers are stored.

Layers are read in pieces, so memory does not grow with a layer. Where a file's description breaks the
contract, a layer is read as `stored.judge.examine` put it right.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...files.checkpoint import Checkpoint, TensorInfo
from ...files.dtypes import FLOAT8, nbytes, torch_dtype
from ...folding.factors import Folds
from ...formats import Format, Tensors
from ...formats.bank import matrix_shape
from ...formats.errors import ConversionError
from ...formats.names import PRE_QUANT_SCALE, WEIGHT
from ...kernels import rotate
from ...quant.grid import Grid
from ...quant.layouts import WeightLayout, weight_layout
from ...quant.layouts.weight import smoothed
from ..stored.companions import stored_quant
from ..stored.judge import Examined
from .kept import read_elements

ELEMENTS = 1 << 17
"""In a piece: it stays in the cache, and its buffers are not given back to the system each time. A model of
156 MiB took 0.8 s of one core, and 2.1 s with four million elements."""


@dataclass(frozen=True)
class Source:
    """An original weight, read in rows: floats, or FP8 with its scale.

    folds: what was folded into it as `folded_as`, the name it has in the quantized file.
    """

    checkpoint: Checkpoint
    info: TensorInfo
    scale: torch.Tensor | None
    folds: Folds | None = None
    folded_as: str = ""

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, name: str, folds: Folds | None = None, folded_as: str = ""
    ) -> "Source":
        """Open a weight; ConversionError for one without values to read: INT8, or an FP8 scale of no row."""
        info = checkpoint.tensors[name]
        quant = stored_quant(checkpoint, name)
        scale = None
        if quant and quant.scale and info.dtype in FLOAT8:
            scale = checkpoint.read(quant.scale).float().reshape(-1, 1)
            if scale.shape[0] not in (1, matrix_shape(info.shape)[0]):
                raise ConversionError(
                    f"{name}: the original's FP8 scale has {scale.shape[0]} values, not one or one per row"
                )
        elif not info.dtype.startswith(("F", "BF")):
            raise ConversionError(
                f"{name}: the original is stored as {info.dtype}; compare with the unquantized file"
            )
        return cls(checkpoint, info, scale, folds, folded_as)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Read float32 rows [start, stop)."""
        k = self.info.shape[-1]
        rows = read_elements(self.checkpoint, self.info, start * k, stop * k).view(-1, k).float()
        if self.scale is not None:
            rows.mul_(self.scale if self.scale.shape[0] == 1 else self.scale[start:stop])
        return rows if self.folds is None else self.folds.apply(self.folded_as, rows, start)


@dataclass(frozen=True)
class Quantized:
    """A stored layer, read in rows.

    form: the format it is read in. infos: its tensors as they should stand, a bank's as one matrix's. beside:
    the values of all but the weight, in those dtypes and shapes.
    """

    checkpoint: Checkpoint
    info: TensorInfo
    form: Format
    infos: Tensors
    beside: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, checkpoint: Checkpoint, examined: Examined) -> "Quantized":
        """Open a layer; ConversionError when the file does not say how to read it."""
        stored, form = examined.layer, examined.format
        if form is None:
            raise ConversionError(
                f"{stored.name}: cannot be read as its file describes it; ctq inspect says why"
            )
        infos = form.matrix(examined.stored)
        beside = {}
        for suffix, info in stored.tensors.items():
            values = checkpoint.read(info.name)
            dtype = torch_dtype(infos[suffix].dtype)
            beside[suffix] = (values if dtype is None else values.to(dtype)).reshape(infos[suffix].shape)
        return cls(checkpoint, stored.weight, form, infos, beside)

    @property
    def layout(self) -> type[WeightLayout]:
        """The layout that such weights have in memory."""
        return weight_layout(self.form.layout)

    @property
    def grid(self) -> Grid:
        """What such a weight is rounded to; for a layout that says nothing of it, one scale in all."""
        try:
            return self.layout.grid(self.form)
        except TypeError:
            return Grid(rows=0)

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K] of the weight that the layer stands for; of a bank, all rows of its experts."""
        return self.form.shape(self.infos[WEIGHT].shape)

    def pieces(self, size: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield row ranges of about `size` elements (None: ELEMENTS) that start where rows come apart."""
        n, k = self.shape
        edge = self.form.row_step
        step = max(1, (size or ELEMENTS) // k // edge) * edge
        return ((start, min(start + step, n)) for start in range(0, n, step))

    def part(self, start: int, stop: int, form: Format | None = None) -> "Part":
        """Read rows [start, stop), as stored or as if in another format with the same tensors."""
        form, stored = form or self.form, self.infos[WEIGHT].shape
        width = self.info.nbytes // stored[0] // _itemsize(self.info)
        parts = form.rows(start, stop - start, self.infos)
        first, last = parts[WEIGHT] or (0, stored[0])
        q = read_elements(self.checkpoint, self.info, first * width, last * width)
        q = q.view(last - first, *stored[1:])
        beside = {s: t if (p := parts[s]) is None else t[p[0] : p[1]] for s, t in self.beside.items()}
        return Part(form, self.layout, *self.layout.load(form, {WEIGHT: q, **beside}, torch.float32))


@dataclass(frozen=True)
class Part:
    """Some rows of a stored layer, as its layout holds them.

    The stored space is that of the layout's values: rotated where the weight is, and not yet multiplied by
    pre_quant_scale.
    """

    form: Format
    layout: type[WeightLayout]
    qdata: torch.Tensor
    params: dict[str, Any]

    def floats(self) -> torch.Tensor:
        """Return the float32 values [n, K]."""
        return self.layout.dequantize(self.qdata, **self.params)

    @property
    def smooth(self) -> torch.Tensor | None:
        """The factors [K] that the input is multiplied by, None without."""
        return self.params.get(PRE_QUANT_SCALE)

    def stored(self, weight: torch.Tensor) -> torch.Tensor:
        """Bring float32 rows [n, K] of the original into the stored space; may return them as they are."""
        work = smoothed(weight, self.smooth)
        return rotate(work, self.form.rotation) if self.form.rotation else work

    def values(self) -> torch.Tensor:
        """Return the float32 values [n, K] in the stored space."""
        return self.layout.values(self.qdata, self.params)

    def nearest(self, work: torch.Tensor) -> torch.Tensor:
        """Return the values nearest to rows `work` [n, K] of the stored space that these scales allow."""
        return self.layout.nearest(work, self.qdata, self.params)

    def anew(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the values of original rows [n, K] rounded to nearest with scales of their own."""
        return self.layout.values(*self.layout.round(smoothed(weight, self.smooth), self.form))

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T as a model runs it."""
        inner = x if self.smooth is None else x * self.smooth
        return self.layout.linear(inner, self.qdata, self.params, None)


def _itemsize(info: TensorInfo) -> int:
    return nbytes(info.dtype, (1,))
