"""Rules that need no formula: operations that are linear, casts, and those whose result carries no tangent."""

from typing import Any

import torch
from torch import Tensor

from shortflow.dual.pairs import Dual, first_dual, paired, register_all, rule, values

# ------------------------------------------------------------------ what depends on the value alone, and has no tangent

_ATTRIBUTES = (
    "shape dtype device ndim layout is_cuda is_sparse is_quantized is_leaf is_cpu is_meta is_mps is_xpu "
    "itemsize nbytes grad_fn is_nested"
)


def _of_values(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*values(args), **values(kwargs))


register_all([getattr(Tensor, name).__get__ for name in _ATTRIBUTES.split()], _of_values)


def _never(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return False


register_all([Tensor.requires_grad.__get__], _never)  # its halves do, see `Dual`  # pyright: ignore
register_all(
    "size dim numel stride storage_offset is_floating_point is_complex is_contiguous element_size data_ptr get_device "
    "item tolist __bool__ __float__ __int__ __len__ __hash__ __format__ __contains__ "
    "eq ne lt le gt ge equal allclose isclose __eq__ __ne__ __lt__ __le__ __gt__ __ge__ isnan isinf isfinite "
    "sign floor ceil round trunc heaviside argmax argmin argsort any all bincount logical_and logical_or logical_not "
    "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty new_tensor "
    "detach result_type is_nonzero nonzero is_inference broadcast_shapes __floordiv__ floor_divide is_signed long int "
    "bool is_same_size count_nonzero",
    _of_values,
)


# ------------------------------------------------------------------------------------- linear in their tensor arguments


def tangents(arguments: Any, kind: torch.dtype) -> Any:
    """The arguments with every dual replaced by its tangent, and what is plain data by its tangent, zeros of `kind`.

    Of plain tensors those of floating-point numbers are data, and those of integers or truth values places and masks.
    """
    if isinstance(arguments, Dual):
        return arguments.tangent
    if isinstance(arguments, Tensor) and (arguments.is_floating_point() or arguments.is_complex()):
        return torch.zeros_like(arguments, dtype=kind)
    if isinstance(arguments, (tuple, list)) and any(isinstance(argument, Tensor) for argument in arguments):
        return type(arguments)([tangents(argument, kind) for argument in arguments])
    return arguments


def _linear(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    value = func(*values(args), **values(kwargs))

    def tangent() -> Any:
        kind = first_dual((args, kwargs)).tangent.dtype
        return func(*[tangents(each, kind) for each in args], **{k: tangents(v, kind) for k, v in kwargs.items()})

    return paired(value, tangent, args, kwargs)


def _like(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation on the first argument that asks the second for its shape alone."""
    value = func(*values(args), **values(kwargs))
    if not isinstance(args[0], Dual):
        return value
    return paired(value, lambda: func(args[0].tangent, *values(args[1:]), **values(kwargs)), args, kwargs)


register_all(
    "reshape view flatten unflatten transpose permute swapaxes swapdims movedim moveaxis t adjoint squeeze unsqueeze "
    "expand broadcast_to repeat repeat_interleave tile roll flip rot90 chunk split tensor_split unbind "
    "select narrow index_select gather take_along_dim diagonal tril triu contiguous clone ravel "
    "neg negative __neg__ positive __pos__ sum mean cumsum diff trace cat concat concatenate stack hstack "
    "vstack pixel_shuffle pixel_unshuffle interpolate avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d unfold fold channel_shuffle hsplit vsplit dsplit atleast_1d atleast_2d __getitem__",
    _linear,
)
register_all("expand_as view_as reshape_as", _like)
register_all([Tensor.T.__get__, Tensor.mT.__get__, Tensor.H.__get__, Tensor.mH.__get__], _linear)  # pyright: ignore[reportAttributeAccessIssue]


def _casting(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    pair = first_dual((args, kwargs))
    if not isinstance(args[0], Dual):  # x.type_as(pair)
        return func(*values(args), **values(kwargs))
    value = func(*values(args), **values(kwargs))
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return value  # a name of a type; or a step function, whose derivative is 0
    # Not to the value's precision: a policy with its own keeps that, and `dual` casts the others.
    return paired(value, lambda: pair.tangent.to(value.device), args, kwargs)


register_all("to type type_as float double half bfloat16 cpu cuda", _casting)


@rule("pad")
def _pad(x: Any, pad: Any, mode: str = "constant", value: float | int | None = None) -> Any:
    y = torch.nn.functional.pad(x.value, pad, mode, value)
    return y, lambda: torch.nn.functional.pad(x.tangent, pad, mode, 0.0 if mode == "constant" else None)
