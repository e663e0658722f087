"""Properties of operators: views, device rules, kernels, and which of them make the host wait."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Operator:
    """What the dispatcher knows of one operator.

    Attributes:
        name: with its overload.
        base: without it.
        composite: it is composed of other operators, above autograd.
        mixes: it accepts one CPU scalar tensor (0-dim) beside CUDA tensors.
        view: it launches no kernel.
        aliases: a result is a view of an argument.
        has_kernel: the installed PyTorch has a CUDA kernel for it, or cannot tell.
        writes: for each result that is an argument, its number, and the name and position of that argument.
        factory: it has an argument ``device``.
    """

    name: str
    base: str
    composite: bool
    mixes: bool
    view: bool
    aliases: bool
    has_kernel: bool
    writes: tuple[tuple[int, str, int | None], ...]
    factory: bool


@functools.cache
def describe(func: Any) -> Operator:
    """The properties of an operator overload."""
    schema, name = func._schema, func.name()
    positions = {arg.name: i for i, arg in enumerate(schema.arguments)}
    writes = []
    for number, result in enumerate(schema.returns):
        if result.alias_info is None or not result.alias_info.is_write:
            continue
        for arg in schema.arguments:
            if arg.alias_info is not None and arg.alias_info.before_set == result.alias_info.before_set:
                writes.append((number, arg.name, None if arg.kwarg_only else positions[arg.name]))
                break
    base = name.partition(".")[0]
    aliases = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    return Operator(
        name=name,
        base=base,
        composite=torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd"),
        mixes=name in _unchecked(),
        view=aliases or base in _WITHOUT_KERNEL,
        aliases=aliases,
        has_kernel=not torch.backends.cuda.is_built()
        or torch._C._dispatch_has_computed_kernel_for_dispatch_key(name, "CUDA"),
        writes=tuple(writes),
        factory=any(arg.name == "device" for arg in schema.arguments),
    )


@functools.cache
def _unchecked() -> frozenset[str]:
    """Operators whose CUDA wrappers leave the comparison of devices to TensorIterator."""
    import torchgen  # type: ignore[import-untyped]
    import yaml

    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    listed = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return frozenset(
        "aten::" + entry["func"].split("(")[0] for entry in listed if entry.get("device_check") == "NoCheck"
    )


def _aten(names: str) -> frozenset[str]:
    return frozenset(f"aten::{name}" for name in names.split())


_WITHOUT_KERNEL = _aten(
    "detach alias lift_fresh _reshape_alias view t is_pinned _unsafe_view empty empty_like empty_strided new_empty "
    "new_empty_strided _local_scalar_dense set_ resize_ sym_size sym_stride sym_numel is_same_size"
)

SYNCHRONIZING = {
    **dict.fromkeys(
        _aten("_local_scalar_dense equal is_nonzero allclose multinomial _linalg_check_errors"), "item"
    ),
    **dict.fromkeys(
        _aten(
            "nonzero nonzero_numpy argwhere _unique _unique2 unique_dim unique_consecutive unique_dim_consecutive "
            "bincount"
        ),
        "size",
    ),
    "aten::masked_select": "mask",
    "aten::mode": "op",
    "aten::_ctc_loss": "op",
    "torchvision::nms": "size",
}  # fmt: skip
"""Operators that make the host wait whatever their arguments are, and the kind of :class:`Synchronization`."""

FLOAT_ONLY = _aten(
    "mm addmm bmm baddbmm addbmm mv addmv dot vdot ger convolution max_pool2d_with_indices avg_pool2d "
    "max_pool3d_with_indices avg_pool3d adaptive_max_pool2d _adaptive_avg_pool2d upsample_bilinear2d "
    "upsample_bicubic2d grid_sampler_2d linalg_inv_ex cdist _cdist_forward histc_"
)
"""Operators without integer kernels on CUDA."""

ANY_DEVICE = _aten(
    "index_put index_put_ _index_put_impl_ _unsafe_index_put index _unsafe_index copy_ copy _to_copy _foreach_copy_ "
    "_foreach_copy is_same_size expand_as view_as set_ resize_as_ masked_fill masked_fill_ fill_ fill where lift "
    "lift_fresh _pin_memory is_pinned _pack_padded_sequence _has_compatible_shallow_copy_type index_fill index_fill_"
)
"""Operators that check devices themselves."""


def mixed_devices(operator: Operator) -> RuntimeError:
    """The error that PyTorch raises for tensors on different devices."""
    wrapper = f"wrapper_CUDA_{operator.base.split('::')[1]}"
    return RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and "
                        f"cpu! (when checking arguments in method {wrapper})")  # fmt: skip
