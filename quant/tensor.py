"""QuantizedTensor: integers and scales that stand where a float tensor stood."""

import copy
from typing import Any

import torch
import torch.nn.functional as F

from .dispatch import dispatch, find_handler
from .layouts.base import QuantizedLayout, layout_class


class QuantizedTensor(torch.Tensor):
    """A tensor stored as `_qdata` and `_layout_params` in the layout named `_layout_type`.

    Its shape, dtype and device are those of the float tensor it stands for, so modules, hooks and
    adapters need not know. Torch ops run the layout's handlers (`register_layout_op`); an op without
    one sees the dequantized tensor.
    """

    _qdata: torch.Tensor
    _layout_type: str
    _layout_params: dict[str, Any]

    @staticmethod
    def __new__(
        cls,
        qdata: torch.Tensor,
        layout_type: str | type[QuantizedLayout] | None = None,
        layout_params: dict[str, Any] | None = None,
        requires_grad: bool = False,
    ) -> Any:
        """Wrap existing integers. ValueError for an unknown layout.

        With a tensor alone it answers as ``nn.Parameter`` does, for programs that make a parameter anew by
        ``type(parameter)(value, requires_grad=...)``: a frozen parameter that shares a quantized tensor's
        storage, and an ordinary parameter of an ordinary tensor.
        """
        if layout_type is None or layout_params is None:
            return _parameter(qdata, requires_grad)
        layout = layout_class(layout_type)
        shape = layout_params.get("orig_shape", qdata.shape)
        if layout_params.get("transposed"):
            shape = (shape[1], shape[0])
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            shape,
            dtype=layout_params.get("orig_dtype", torch.float32),
            device=qdata.device,
            requires_grad=False,
        )
        self._layout_type = layout.__name__
        self._replace(qdata, layout_params)
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what `__new__` takes, which has done everything."""

    def _replace(self, qdata: torch.Tensor, params: dict[str, Any]) -> None:
        """Point to other storage of the same shape, dtype and device."""
        self._qdata = qdata
        self._layout_params = params
        # torch.compile reaches inner tensors as attributes.
        for name, value in params.items():
            if isinstance(value, torch.Tensor):
                setattr(self, f"_param_{name}", value)

    @classmethod
    def from_float(
        cls, tensor: torch.Tensor, layout_type: str | type[QuantizedLayout], **options: Any
    ) -> "QuantizedTensor":
        """Quantize `tensor` in a layout; options go to the layout's `quantize`.

        ``QuantizedTensor.from_float(w, "TensorWiseINT8Layout", rotation=256)``
        """
        layout = layout_class(layout_type)
        qdata, params = layout.quantize(tensor.detach(), **options)
        if qdata.shape != tensor.shape and "orig_shape" not in params:
            params = {**params, "orig_shape": tuple(tensor.shape)}
        return cls(qdata, layout, params)

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return the float tensor in this tensor's shape, as `dtype` (None: this tensor's own)."""
        params = self._layout_params if dtype is None else {**self._layout_params, "orig_dtype": dtype}
        return layout_class(self._layout_type).dequantize(self._qdata, **params)

    def requantize(self, tensor: torch.Tensor) -> "QuantizedTensor":
        """Quantize `tensor` the way this one is: same layout, granularity, rotation and logical dtype."""
        layout = layout_class(self._layout_type)
        if tensor.dtype not in (torch.float16, torch.bfloat16):
            tensor = tensor.float()
        made = QuantizedTensor.from_float(tensor, layout, **layout.requantize_options(self._layout_params))
        return made if made.dtype == self.dtype else made.map_inner(lambda a: a, orig_dtype=self.dtype)

    def map_inner(self, fn: Any, **changes: Any) -> "QuantizedTensor":
        """Return a tensor of this layout with `fn` applied to the integers and every tensor parameter.

        changes: parameters to set besides, such as orig_dtype.
        """
        params = {k: fn(v) if isinstance(v, torch.Tensor) else v for k, v in self._layout_params.items()}
        return QuantizedTensor(fn(self._qdata), self._layout_type, {**params, **changes})

    @classmethod
    def of(
        cls, made: tuple[torch.Tensor, dict[str, Any]], layout: str | type[QuantizedLayout]
    ) -> "QuantizedTensor":
        """Wrap ``(qdata, params)`` as a layout's methods return them."""
        return cls(made[0], layout, made[1])

    def alias(self, fn: Any = None, **changes: Any) -> "QuantizedTensor":
        """Return `map_inner` as a view: same storage, and an inference tensor only if this one is.

        Autograd lets a view share its base's version counter, which inference tensors do not have.
        """
        with torch.inference_mode(self.is_inference()):
            return self.map_inner(fn or (lambda a: a), **changes)

    @property  # type: ignore[override]  # torch declares an attribute there
    def data(self) -> "QuantizedTensor":
        """The same storage as a new tensor; setting it takes over another one's, on any device."""
        return self.alias()

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        if not isinstance(other, QuantizedTensor):
            raise TypeError(
                f"{self} can only take over the storage of another quantized tensor, not of a plain "
                f"{other.dtype} one; assign a new parameter to its module instead"
            )
        taken = other.alias()
        taken._is_param = getattr(self, "_is_param", False)
        # torch's own setter would leave the integers where they are.
        torch.utils.swap_tensors(self, taken)

    def data_ptr(self) -> int:
        """Return where the integers are: different tensors must have different addresses."""
        return self._qdata.data_ptr()

    def numpy(self, *, force: bool = False) -> Any:
        """Return the float values as an array; see `torch.Tensor.numpy`."""
        return self.dequantize().numpy(force=force)

    def storage(self) -> Any:
        """Raise RuntimeError: savers that ask for it would write nonsense."""
        raise RuntimeError(
            "a quantized tensor is several tensors and has no storage of its own, so it cannot be saved or "
            "copied as bytes; use convert_to_quant.runtime.save_quantized(model, path), or give the "
            "program plain_state_dict(model) from there instead of model.state_dict()"
        )

    def share_memory_(self) -> "QuantizedTensor":
        """Move the integers and parameters to shared memory; torch's own crashes for want of a storage."""
        for a in self.inner_tensors().values():
            a.share_memory_()
        return self

    def is_shared(self) -> bool:
        """Return whether the integers and every tensor parameter are in shared memory."""
        return all(a.is_shared() for a in self.inner_tensors().values())

    def inner_tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that it is made of: "_qdata" and every tensor parameter by name."""
        params = {k: v for k, v in self._layout_params.items() if isinstance(v, torch.Tensor)}
        return {"_qdata": self._qdata, **params}

    def __tensor_flatten__(self) -> tuple[list[str], tuple]:
        tensors = sorted(k for k, v in self._layout_params.items() if isinstance(v, torch.Tensor))
        plain = tuple(sorted((k, v) for k, v in self._layout_params.items() if k not in tensors))
        return ["_qdata", *(f"_param_{k}" for k in tensors)], (self._layout_type, plain)

    def _stable_hash_for_caching(self) -> str:
        """Return what compiled code depends on, for PyTorch's compilation caches."""
        names, (layout, plain) = self.__tensor_flatten__()
        inner = [(n, getattr(self, n).dtype, tuple(getattr(self, n).shape)) for n in names]
        return repr((layout, plain, inner))

    @staticmethod
    def __tensor_unflatten__(
        inner: dict, context: tuple, outer_size: Any, outer_stride: Any
    ) -> "QuantizedTensor":
        layout_type, plain = context
        tensors = {k.removeprefix("_param_"): v for k, v in inner.items() if k != "_qdata"}
        return QuantizedTensor(inner["_qdata"], layout_type, {**dict(plain), **tensors})

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        # Autograd would take F.linear apart into t() and addmm() before a handler of
        # aten.linear could see it.
        if func in _LINEAR:
            return _linear(*args, **(kwargs or {}))
        # Not super(): it would turn plain results into this class.
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares a C function there
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return dispatch(func, args, kwargs or {}, QuantizedTensor)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return _rebuild, (self._qdata, self._layout_type, self._layout_params)

    def __deepcopy__(self, memo: dict[int, Any]) -> "QuantizedTensor":
        """Copy storage and marks; torch's own looks for storage at `data_ptr`."""
        if id(self) not in memo:
            made = self.map_inner(lambda a: a.clone())
            own = {"_qdata", "_layout_type", "_layout_params", *self.__tensor_flatten__()[0]}
            made.__dict__.update(
                {k: copy.deepcopy(v, memo) for k, v in self.__dict__.items() if k not in own}
            )
            memo[id(self)] = made
        return memo[id(self)]  # type: ignore[no-any-return]

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # untyped there
        extra = {
            k: v
            for k, v in self._layout_params.items()
            if not isinstance(v, torch.Tensor) and k != "orig_dtype"
        }
        more = "".join(f", {k}={v}" for k, v in extra.items())
        return (
            f"QuantizedTensor({tuple(self.shape)}, {self._layout_type}{more}, dtype={self.dtype}, "
            f"device={self.device})"
        )


_LINEAR = (F.linear, torch.ops.aten.linear, torch.ops.aten.linear.default)


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    quantized = weight if isinstance(weight, QuantizedTensor) else input
    layout = quantized._layout_type if isinstance(quantized, QuantizedTensor) else bias._layout_type
    op = torch.ops.aten.linear.default
    handler = find_handler(op, layout)
    if handler is not None:
        return handler(op, (input, weight, bias), {})
    with torch._C.DisableTorchFunctionSubclass():
        return F.linear(input, weight, bias)


def _parameter(tensor: torch.Tensor, requires_grad: bool) -> torch.nn.Parameter:
    if not isinstance(tensor, QuantizedTensor):
        return torch.nn.Parameter(tensor, requires_grad)
    if requires_grad:
        raise RuntimeError(f"{tensor} is stored as integers and takes no gradient; train an adapter on top")
    made = tensor.alias()
    made._is_param = True
    return made  # type: ignore[return-value]  # a parameter by its mark


def _rebuild(qdata: torch.Tensor, layout_type: str, params: dict[str, Any]) -> QuantizedTensor:
    return QuantizedTensor(qdata, layout_type, params)


torch.serialization.add_safe_globals([_rebuild, QuantizedTensor])
