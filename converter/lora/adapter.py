"""One module of a LoRA file: what kind of change it is, its shape, and what it is multiplied by."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ...files.checkpoint import TensorInfo
from ...formats.errors import ConversionError

Kind = Literal["lora", "loha", "lokr", "diff"]

KIND_ROLES: dict[Kind, tuple[str, ...]] = {
    "lora": ("up", "down"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "lokr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
    "diff": ("diff",),
}
"""The tensors that a change of each kind is made of."""

_NEEDS: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "lora": (("up",), ("down",)),
    "loha": (("hada_w1_a",), ("hada_w1_b",), ("hada_w2_a",), ("hada_w2_b",)),
    "lokr": (("lokr_w1", "lokr_w1_a"), ("lokr_w2", "lokr_w2_a")),
    "diff": (("diff",),),
}


@dataclass(frozen=True)
class Adapter:
    """A change [N, K] of one weight, or [N, 1] of a vector, as the tensors of a LoRA file.

    kind: "lora" (up @ down), "loha" ((w1_a @ w1_b) * (w2_a @ w2_b)), "lokr" (kron(w1, w2)) or "diff" (the
    change itself). tensors: role -> where it is. bias: the change is of the layer's bias. file_alpha: alpha
    from the file's metadata, used where there is no alpha tensor. rank_stabilised: alpha is divided by the
    square root of the rank (rsLoRA).
    """

    file: str
    module: str
    kind: Kind
    tensors: Mapping[str, TensorInfo] = field(hash=False)
    bias: bool = False
    file_alpha: float | None = None
    rank_stabilised: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the change; the trailing dimensions of a convolution count as columns."""
        t = {role: flat(info.shape) for role, info in self.tensors.items()}
        if self.kind == "lora":
            return t["up"][0], t["down"][1]
        if self.kind == "loha":
            return t["hada_w1_a"][0], t["hada_w1_b"][1]
        if self.kind == "lokr":
            first, second = (
                t[w] if w in t else (t[f"{w}_a"][0], t[f"{w}_b"][1]) for w in ("lokr_w1", "lokr_w2")
            )
            return first[0] * second[0], first[1] * second[1]
        return t["diff"]

    @property
    def rank(self) -> int | None:
        """The rank that alpha is divided by; None where alpha does not apply."""
        if "down" in self.tensors:
            return self.tensors["down"].shape[0]
        if self.kind == "loha":
            return self.tensors["hada_w1_b"].shape[0]
        if self.kind == "lokr":
            low = [self.tensors[r].shape[0] for r in ("lokr_w2_b", "lokr_w1_b") if r in self.tensors]
            return low[0] if low else None
        return None

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors once they are float32."""
        return sum(4 * info.numel for info in self.tensors.values())

    def factor(self, alpha: float | None) -> float:
        """Return what the change is multiplied by before any user's scale: alpha / rank, 1 without either."""
        alpha = self.file_alpha if alpha is None else alpha
        rank = self.rank
        if alpha is None or rank is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def check(self) -> None:
        """Raise ConversionError where tensors are missing or do not fit each other, naming them."""
        for group in _NEEDS[self.kind]:
            if not any(role in self.tensors for role in group):
                have = ", ".join(repr(t.name) for t in self.tensors.values())
                raise ConversionError(
                    f"{self.file}: {self.module!r} has {have} but no {' or '.join(group)}: not a whole LoRA"
                )
        for role, info in self.tensors.items():
            self._check_tensor(role, info)
        pairs = {
            "lora": (("up", "down"),),
            "loha": (("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")),
            "lokr": (("lokr_w1_a", "lokr_w1_b"), ("lokr_w2_a", "lokr_w2_b")),
        }.get(self.kind, ())
        for left, right in pairs:
            if left in self.tensors or right in self.tensors:
                self._check_product(left, right)
        if self.kind == "loha":
            self._check_equal("hada_w1_a", "hada_w2_a", 0)
            self._check_equal("hada_w1_b", "hada_w2_b", 1)

    def _check_tensor(self, role: str, info: TensorInfo) -> None:
        """Refuse a tensor without values (rank 0), an alpha that is not one number, a matrix of one axis."""
        if not info.numel:
            raise ConversionError(f"{self.file}: {_named(info)} holds no values: the LoRA is damaged")
        if role == "alpha" and info.numel != 1:
            raise ConversionError(f"{self.file}: {_named(info)} is not one number: the LoRA is damaged")
        least = {"alpha": 0, "diff": 0, "dora": 1}.get(role, 2)
        if len(info.shape) < least:
            raise ConversionError(f"{self.file}: {_named(info)} is no matrix: the LoRA is damaged")

    def _check_product(self, left: str, right: str) -> None:
        a, b = self.tensors.get(left), self.tensors.get(right)
        if a is None or b is None:
            have = a or b
            assert have is not None
            raise ConversionError(
                f"{self.file}: {have.name!r} stands alone, without its {left} or {right}: not a whole LoRA"
            )
        if flat(a.shape)[1] != b.shape[0]:
            raise ConversionError(self._misfit(a, b))

    def _check_equal(self, left: str, right: str, axis: int) -> None:
        a, b = self.tensors[left], self.tensors[right]
        if flat(a.shape)[axis] != flat(b.shape)[axis]:
            raise ConversionError(self._misfit(a, b))

    def _misfit(self, a: TensorInfo, b: TensorInfo) -> str:
        return f"{self.file}: {_named(a)} and {_named(b)} do not fit each other: the LoRA is damaged"


def flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return a tensor's shape as a matrix's: the first dimension, and the product of the others."""
    rows = shape[0] if shape else 1
    return rows, math.prod(shape[1:])


def _named(info: TensorInfo) -> str:
    return f"{info.name!r} {list(info.shape)}"
