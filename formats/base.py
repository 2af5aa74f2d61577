"""What a storage format says of itself: one class per ``comfy_quant`` format, one value per layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from . import bank
from .config import checked_config, flag, flattened, shown
from .errors import CheckpointError
from .names import INPUT_SCALE, PRE_QUANT_SCALE, SCALE, WEIGHT
from .tensors import Shape, StoredTensor, Tensors

FORMATS: dict[str, type["Format"]] = {}
"""Every format by its name in ``comfy_quant``; defining a subclass of Format with a `name` adds it."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Safetensors dtypes of plain floats."""

Report = Callable[..., None]
"""Takes a fault: ``report(kind, text, fix="", fatal=True)``.

kind: a few words that faults of one sort share. text: a sentence on what is wrong with the layer. fix: what
was done about it, "" for nothing. fatal: whether the layer cannot be used as it is.
"""


@dataclass(frozen=True)
class Asked:
    """What a person asks for one layer, whatever its format; a format takes the fields that it has.

    option: the value of ``--format``. granularity: a word of ``--scaling_mode``, "" for the format's own.
    rotation: ConvRot group, in columns, 0 for none. block_size: edge of a block, in weights.
    full_precision_matrix_mult, experts: as in `Format`.
    """

    granularity: str = ""
    rotation: int = 0
    block_size: int = 128
    full_precision_matrix_mult: bool = False
    option: str = ""
    experts: int = 0


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one layer is stored. A subclass is a format; its instances are the choices of single layers.

    A subclass sets the class variables and defines `tensors`; `config`, `read`, `rows` and the rest where the
    defaults below do not fit. The runtime finds its layout by the name in `layout` (quant/layouts).

    rotation: ConvRot group, 0 for none. extra: suffixes of optional tensors that the layer has.
    full_precision_matrix_mult: written into ``comfy_quant``; ComfyUI reads it, and ignores it for INT8.
    experts: in a bank (`formats.bank`), whose rows count as those of one matrix; 0 for a Linear.
    """

    name: ClassVar[str]
    """On disk, in ``comfy_quant``."""
    option: ClassVar[str] = ""
    """What a person types after ``--format``; "" for formats that are read and not written."""
    options: ClassVar[tuple[str, ...]] = ()
    """All that a person may type, where one format has several; `option` is the first."""
    warn_db: ClassVar[float] = 20.0
    """The weight SQNR below which a person should look at a layer, in dB."""
    descent_passes: ClassVar[int] = 0
    """Passes of coordinate descent after LDLQ that are worth their time, where nobody asks for a number."""
    largest_first: ClassVar[bool] = True
    """Whether LDLQ takes the columns with the largest inputs first, where nobody asks for an order."""
    fold_balance: ClassVar[float] = 0.25
    """How much of its inputs' unevenness a fold moves into its weights, from 0 to 1 (`quantize.measure`)."""
    layout: ClassVar[str] = ""
    """Class name of the layout that holds such a weight at run time."""
    stock_since: ClassVar[str] = ""
    """The first ComfyUI that loads it without a node pack; "" if none does."""
    granularities: ClassVar[tuple[str, ...]] = ()
    """The words of ``--scaling_mode`` that this format answers to, its own first."""
    rotates: ClassVar[bool] = False
    """Whether its weights may be rotated (ConvRot)."""
    activations: ClassVar[str] = "int8"
    """What the runtime multiplies its weights with; formats that share it can be mixed in one model."""
    always_rotated: ClassVar[bool] = False
    """Whether there is no other way."""
    banks: ClassVar[bool] = False
    """Whether stock ComfyUI reads banks of experts in it."""
    rotates_banks: ClassVar[bool] = False
    """Whether it then reads rotated ones."""
    weight_dtype: ClassVar[str] = "I8"
    """Safetensors dtype of the weight."""
    unlabelled: ClassVar[bool] = False
    """Whether a weight of this dtype that nothing is said of is taken for it."""
    suffixes: ClassVar[tuple[str, ...]] = (SCALE,)
    """Tensors that always stand beside the weight."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Tensors beside the weight that some layers have and others not; a field of the format says which."""
    extras: ClassVar[tuple[str, ...]] = (INPUT_SCALE, PRE_QUANT_SCALE)
    """Optional tensors that it may have."""
    smoothed_as: ClassVar[str] = ""
    """The format that a layer with a ``pre_quant_scale`` is written in, where that is another."""

    rotation: int = 0
    full_precision_matrix_mult: bool = False
    extra: tuple[str, ...] = field(default=())
    experts: int = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            FORMATS[cls.name] = cls

    def __post_init__(self) -> None:
        """Put the extras in order; ValueError for one, or a rotation, that the format does not have."""
        if self.rotation and not self.rotates:
            raise ValueError(f"{self.name} has no rotation")
        if unknown := set(self.extra) - set(self.extras):
            raise ValueError(f"{self.name} has no {sorted(unknown)[0]}")
        object.__setattr__(self, "extra", tuple(s for s in self.extras if s in self.extra))

    @classmethod
    def make(cls, asked: Asked) -> "Format":
        """Return the format of a layer for which `asked` is asked; ValueError for what it cannot be."""
        own = {f.name for f in fields(cls)}
        given = {f.name: getattr(asked, f.name) for f in fields(asked) if f.name in own}
        if not given.get("granularity", True):
            del given["granularity"]
        return cls(**given)

    def having(self, extra: tuple[str, ...]) -> "Format":
        """Return this layer's format with those extra tensors: another one where they make it so."""
        cls = FORMATS[self.smoothed_as] if PRE_QUANT_SCALE in extra and self.smoothed_as else type(self)
        return cls(**{**{f.name: getattr(self, f.name) for f in fields(self)}, "extra": extra})

    def tensors(self, shape: Shape) -> tuple[StoredTensor, ...]:
        """Return the stored tensors of a weight [N, K]: the weight first, then its `suffixes`.

        ``comfy_quant`` and extra tensors are not among them. Shapes are the stored ones: a weight whose rows
        are packed has fewer columns than K.
        """
        raise NotImplementedError(f"{type(self).__name__} must define tensors(shape)")

    def stored(self, shape: Shape) -> tuple[StoredTensor, ...]:
        """Return `tensors` and the extra ones: [K] ``pre_quant_scale``, [] ``input_scale``, both float32.

        Of a bank with the axis of its experts: the shapes in the file.
        """
        extras = {INPUT_SCALE: (), PRE_QUANT_SCALE: (shape[1],)}
        own = (bank.taken_apart(t, shape[0], self.experts) for t in self.tensors(shape))
        return (*own, *(StoredTensor(s, "F32", extras[s]) for s in extras if s in self.extra))

    def matrix(self, tensors: Tensors) -> Tensors:
        """Return tensors of a file as `rows`, `shape` and layouts take them: a bank's as one matrix's."""
        return bank.matrix(tensors, self.experts)

    def logical(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the weight that one stored so stands for: [N, K], or [E, N, K] of a bank."""
        n, k = self.shape(bank.matrix_shape(stored))
        return (self.experts, n // self.experts, k) if self.experts else (n, k)

    def config(self) -> dict[str, Any]:
        """Return the ``comfy_quant`` object, in the key order of ComfyUI's own saver."""
        full = {"full_precision_matrix_mult": True} if self.full_precision_matrix_mult else {}
        experts = {bank.KEY: self.experts} if self.experts else {}
        return {"format": self.name, **self.keys(), **full, **experts}

    def keys(self) -> dict[str, Any]:
        """Return the format's own keys of ``comfy_quant``."""
        return {}

    @classmethod
    def read(cls, config: Mapping[str, Any], tensors: Tensors, where: str) -> "Format":
        """Read how a layer is stored from its ``comfy_quant`` and the shapes of its tensors.

        config: the JSON object. tensors: by suffix, the weight among them. where: how errors name the layer.
        Keys may stand in "params", sizes may be texts. CheckpointError, naming `where`, for what this format
        cannot be: a tensor that is missing, misshapen, of another dtype, a weight without elements, a size
        that does not fit.
        """
        settings = flattened(config)
        experts = bank.require_experts(settings, tensors, where) if WEIGHT in tensors else 0
        if experts and not cls.banks:
            raise CheckpointError(f"{where}: {cls.name} is not a format of banks of experts")
        return replace(cls._read_matrix(settings, bank.matrix(tensors, experts), where), experts=experts)

    @classmethod
    def _read_matrix(cls, settings: Mapping[str, Any], tensors: Tensors, where: str) -> "Format":
        """Read as `read` does, for flattened settings and the tensors of one matrix."""
        for suffix in (WEIGHT, *cls.suffixes):
            if suffix not in tensors:
                raise CheckpointError(f"{where} ({cls.name}) has no {suffix}")
        w = tensors[WEIGHT]
        if w.dtype != cls.weight_dtype or len(w.shape) != 2 or not w.numel:
            raise CheckpointError(
                f"{where}: {cls.name} needs a weight {cls.weight_dtype} [N, K], not {w.dtype} {list(w.shape)}"
            )
        if not cls.rotates and flag(settings, "convrot"):
            raise CheckpointError(f"{where}: its comfy_quant says convrot, and {cls.name} has no rotation")
        made = cls.from_settings(settings, tensors, where)
        made.check(tensors, where)
        made.check_dtypes(tensors, where)
        return made

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], tensors: Tensors, where: str) -> "Format":
        """Make the format from flattened ``comfy_quant`` keys; the weight and `suffixes` are there.

        CheckpointError, naming `where`, for a key that no layer of these shapes can have.
        """
        return cls(**cls.common(settings, tensors))

    @classmethod
    def common(cls, settings: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
        """Return the fields that every format reads alike: the flag for full precision, the extra tensors."""
        extra = tuple(s for s in cls.extras if s in tensors)
        return {"full_precision_matrix_mult": flag(settings, "full_precision_matrix_mult"), "extra": extra}

    def check(self, tensors: Tensors, where: str) -> None:
        """Raise CheckpointError for a tensor whose shape is not one that this format reads.

        The default asks for the shapes of `stored`; one element may have any number of axes.
        """
        for wanted in self.stored(self.shape(tensors[WEIGHT].shape)):
            found = tensors[wanted.suffix]
            same = found.numel == wanted.numel if wanted.suffix in self.extra else found.shape == wanted.shape
            if not same and found.numel * wanted.numel != 1:
                raise CheckpointError(
                    f"{where}: {wanted.suffix} is {list(found.shape)}, {self.name} ({self.describe()}) "
                    f"needs {list(wanted.shape)}"
                )

    def check_dtypes(self, tensors: Tensors, where: str) -> None:
        """CheckpointError for a tensor of another dtype than `stored` says; one float dtype is as good as
        another, for loading brings them to what is needed."""
        for wanted in self.stored(self.shape(tensors[WEIGHT].shape)):
            found = tensors[wanted.suffix].dtype
            if found != wanted.dtype and not {found, wanted.dtype} <= set(FLOATS):
                raise CheckpointError(
                    f"{where}: {wanted.suffix} is {found}, {self.name} needs {wanted.dtype}"
                )

    def shape(self, stored: tuple[int, ...]) -> Shape:
        """Return [N, K] of a weight stored with shape `stored`; a format with packed rows overrides this."""
        n, k = stored
        return n, k

    @property
    def row_step(self) -> int:
        """Return how many rows cannot be taken apart: parts of a layer start at its multiples."""
        return 1

    def rows(self, first: int, count: int, tensors: Tensors) -> dict[str, tuple[int, int] | None]:
        """Return which part of each stored tensor belongs to `count` weight rows from `first` on.

        A part is (start, stop) along the first axis; None is the whole tensor. tensors: in the shapes that
        `put_right` gives. `first` is a multiple of `row_step`, and so is `count` unless the rows are the
        last. The default: what has a row for each of the weight's goes with them, the rest is shared.
        """
        n, k = self.shape(tensors[WEIGHT].shape)
        now, more = ({t.suffix: t.shape[:1] for t in self.tensors((m, k))} for m in (n, n + 1))
        own = {s for s in now if now[s] == (n,) and more[s] == (n + 1,)}
        return {s: (first, first + count) if s in own else None for s in tensors}

    def why_no_bank(self) -> str:
        """Return why a bank of experts cannot have this format; "" if it can, and for a Linear."""
        if not self.experts:
            return ""
        if not self.banks:
            return "stock ComfyUI reads no bank of experts in it"
        return "stock ComfyUI drops its rotation" if self.rotation and not self.rotates_banks else ""

    def why_not(self, shape: Shape) -> str:
        """Return why a weight [N, K] cannot have this format; "" if it can."""
        return ""

    def instead(self) -> str:
        """Return the ``--format`` that is next better, for a layer that cannot have this one; "" if none
        is."""
        return ""

    def asked_as(self) -> str:
        """Return what a layer configuration names it by."""
        return self.name

    def describe(self) -> str:
        """Name the format's choices for tables: ``row + convrot 256``."""
        return self.name

    def bank_words(self) -> str:
        """Return what `describe` says of a bank: ``, 32 experts``; "" for a Linear."""
        return f", {self.experts} experts" if self.experts else ""

    def kind(self) -> str:
        """Name the format in sentences: ``INT8``."""
        name = self.asked_as() if self.options else self.option or self.name
        return name.upper()

    def words(self) -> dict[str, Any]:
        """Return the format's own fields by the names that they have in a layer configuration."""
        return {}

    def passes(self, asked: int | None) -> int:
        """Return the passes of coordinate descent after LDLQ: `asked`, or what the format is worth."""
        return self.descent_passes if asked is None else asked

    def actorder(self, asked: bool | None) -> bool:
        """Return whether LDLQ takes the largest inputs' columns first: `asked`, or the format's own."""
        return self.largest_first if asked is None else asked

    def speed(self) -> float:
        """Return the weights rounded and checked per second on two cores; 0 where that was not measured.

        Measured with ``bench/estimate.py``.
        """
        return 0.0

    def tag(self) -> str:
        """Name the format in a file's name: ``int8_row``; without the rotation."""
        return self.option

    @classmethod
    def put_right(
        cls, config: dict[str, Any] | None, tensors: Tensors, report: Report, reported: bool = False
    ) -> tuple[dict[str, Any] | None, Tensors]:
        """Return a layer's config and tensors as they should stand in a file, and report every fault.

        config: None where there is none that can be read; `reported` says that this was told already.
        tensors: as found, under today's suffixes. The default repairs nothing: it reports what `read`
        refuses and what is stored in another dtype or shape than `stored` says.
        """
        if config is None:
            if not reported:
                report("no comfy_quant", "no comfy_quant: nothing says how to read it")
            return None, tensors
        try:
            made = cls.read(config, tensors, cls.name)
        except CheckpointError as e:
            report("layer", str(e))
            return config, tensors
        for wanted in made.stored(made.shape(made.matrix(tensors)[WEIGHT].shape)):
            found = tensors[wanted.suffix]
            if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
                expected = f"{wanted.dtype} {list(wanted.shape)} is expected"
                report("stored tensor", f"{wanted.suffix} is {found.dtype} {list(found.shape)}: {expected}")
        return config, tensors

    @classmethod
    def config_faults(cls, config: Mapping[str, Any], before: Mapping[str, Any], columns: int) -> list[str]:
        """Return why an edited config would no longer fit the tensors of a layer whose config was `before`.

        columns: K of the weight. Empty where it fits.
        """
        return []


def format_class(name: str, where: str) -> type[Format]:
    """Return the format of that name in ``comfy_quant``.

    CheckpointError, naming the layer `where` and the formats there are, for another name.
    """
    if name not in FORMATS:
        known = ", ".join(FORMATS)
        raise CheckpointError(f"layer {where} has format {shown(name)}; this runtime reads {known}")
    return FORMATS[name]


def read_format(config: Mapping[str, Any], tensors: Tensors, where: str) -> Format:
    """Read how a layer is stored, by the format that its ``comfy_quant`` names; see `Format.read`."""
    name = checked_config(config, f"layer {where}")["format"]
    return format_class(name, where).read(config, tensors, f"layer {where}")


def companion_suffixes() -> dict[str, None]:
    """Return every suffix that a tensor beside a quantized weight may have, ``comfy_quant`` aside."""
    return dict.fromkeys(s for f in FORMATS.values() for s in (*f.suffixes, *f.optional, *f.extras))
