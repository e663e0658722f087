"""Backpropagation in Python: the C++ engine would ask the driver for streams of a device that is not there."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import _get_grad_fn_or_grad_acc


def run_backward(
    outputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    keep_graph: bool,
    create_graph: bool,
    inputs: Sequence[Any] = (),
    allow_unreachable: bool = True,
    accumulate_grad: bool = True,
    **unused: Any,
) -> tuple[Tensor | None, ...]:
    """What the C++ engine does, in one thread and without streams; the arguments are those of the engine."""
    roots = [_edge(value) for value in outputs]
    # By node and output number, the positions of the inputs whose gradients are returned.
    captured: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, value in enumerate(inputs):
        node, slot = _edge(value)
        captured[id(node)][slot].append(position)
    order, waiting = _reachable([node for node, _ in roots])
    needed = _needed(order, captured if inputs else None)

    buffers: dict[int, dict[int, Tensor]] = defaultdict(dict)

    def add(node: Any, slot: int, grad: Tensor | None) -> None:
        if grad is not None:
            slots = buffers[id(node)]
            slots[slot] = grad if slot not in slots else slots[slot] + grad

    for (node, slot), grad, value in zip(roots, grads, outputs):
        add(node, slot, grad if grad is not None else torch.ones_like(value))

    results: list[Tensor | None] = [None] * len(inputs)
    ready: list[tuple[int, int, Any]] = []
    queued: set[int] = set()

    def queue(node: Any) -> None:
        if id(node) not in queued:
            queued.add(id(node))
            heapq.heappush(ready, (-int(node._sequence_nr()), len(queued), node))

    for node, _slot in roots:
        if not waiting[id(node)]:
            queue(node)
    with torch.set_grad_enabled(create_graph):
        while ready:
            _, _, node = heapq.heappop(ready)
            slots = buffers.pop(id(node), {})
            for slot, positions in captured.get(id(node), {}).items():
                for position in positions:
                    results[position] = slots.get(slot)
            runs = bool(slots) and id(node) in needed and _runs(node, bool(inputs), needed, captured, accumulate_grad)
            grads_of_node = _call(node, slots) if runs else [None] * len(node.next_functions)
            for (following, slot), grad in zip(node.next_functions, grads_of_node):
                if following is None:
                    continue
                if grad is not None and id(following) in needed:
                    add(following, slot, _fitting(node, following, slot, grad))
                waiting[id(following)] -= 1
                if not waiting[id(following)]:
                    queue(following)
    if inputs and not allow_unreachable and any(grad is None for grad in results):
        raise RuntimeError("One of the differentiated Tensors appears to not have been used in the graph. Set "
                           "allow_unused=True if this is the desired behavior.")  # fmt: skip
    return tuple(results)


def _edge(value: Any) -> tuple[Any, int]:
    """The node of the graph that computed a value, and which of its outputs the value is."""
    if not isinstance(value, Tensor):  # a GradientEdge
        return value[0], value[1]
    if value.grad_fn is not None:
        return value.grad_fn, value.output_nr
    if not value.requires_grad:
        raise RuntimeError("element 0 of tensors does not require grad and does not have a grad_fn")
    return _get_grad_fn_or_grad_acc(value), 0


def _reachable(roots: Sequence[Any]) -> tuple[list[Any], Counter[int]]:
    """Every node that is reached, those nearer to the leaves first, and how many others lead to each."""
    seen: set[int] = set()
    waiting: Counter[int] = Counter()
    order: list[Any] = []
    stack = [(node, False) for node in roots]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
            continue
        if id(node) in seen:
            continue
        seen.add(id(node))
        stack.append((node, True))
        for following, _ in node.next_functions:
            if following is not None:
                waiting[id(following)] += 1
                if id(following) not in seen:
                    stack.append((following, False))
    return order, waiting


def _needed(order: Sequence[Any], captured: dict[int, Any] | None) -> set[int]:
    """The nodes that lead to what is asked for; all of them for ``None``."""
    needed: set[int] = set()
    for node in order:
        leads = any(following is not None and id(following) in needed for following, _ in node.next_functions)
        if captured is None or id(node) in captured or leads:
            needed.add(id(node))
    return needed


def _runs(node: Any, selected: bool, needed: set[int], captured: dict[int, Any], accumulate_grad: bool) -> bool:
    """Whether a needed node is run, or only hands out the gradient that has arrived."""
    if not selected:
        return True
    if not node.next_functions:
        return accumulate_grad and id(node) in captured
    return any(following is not None and id(following) in needed for following, _ in node.next_functions)


def _call(node: Any, slots: dict[int, Tensor]) -> Sequence[Tensor | None]:
    """The gradients for what a node was computed from."""
    count = max(len(node._input_metadata), max(slots, default=-1) + 1)
    grads: list[Tensor | None] = [slots.get(slot) for slot in range(count)]
    if not issubclass(type(node), torch.autograd.function.BackwardCFunction):
        out = node(*grads)
        return out if isinstance(out, tuple) else (out,)
    if not getattr(node, "_fake_cuda_bare", False):
        for slot, grad in enumerate(grads):
            if grad is None:
                like = node._input_metadata[slot]
                grads[slot] = torch.zeros(tuple(like.shape), dtype=like.dtype, device=like.device)
    out = node.apply(*grads)
    out = out if isinstance(out, tuple) else (out,)
    needs = node.needs_input_grad
    if any(grad is not None for grad in out[len(needs) :]):
        raise RuntimeError(f"function {type(node).__name__} returned an incorrect number of gradients")
    wanted = iter([grad for grad, need in zip(out, needs) if need])
    return [next(wanted, None) if following is not None else None for following, _ in node.next_functions]


def _fitting(node: Any, following: Any, slot: int, grad: Tensor) -> Tensor:
    """A gradient in the shape, dtype and device that the next node expects, as the engine converts it."""
    if slot >= len(following._input_metadata):
        return grad
    like, name = following._input_metadata[slot], type(node).__name__
    shape = tuple(like.shape)
    if tuple(grad.shape) != shape:
        try:
            grad = grad.sum_to_size(shape)
        except RuntimeError:
            raise RuntimeError(f"Function {name} returned an invalid gradient: got {tuple(grad.shape)} but expected "
                               f"shape compatible with {shape}") from None  # fmt: skip
    if grad.dtype != like.dtype:
        grad = grad.to(like.dtype)
    if grad.device != like.device:
        if grad.dim() > 0:
            raise RuntimeError(f"Function {name} returned an invalid gradient - expected device {like.device} but got "
                               f"{grad.device}")  # fmt: skip
        grad = grad.to(like.device)
    return grad
