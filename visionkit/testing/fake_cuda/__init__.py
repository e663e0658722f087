"""An emulated CUDA device: finds what would fail on a GPU, and where the host would wait for it, without one.

Inside ``with fake_cuda() as gpu:`` a tensor on ``"cuda"`` is a wrapper around an ordinary CPU tensor, on which every
operator is computed. So the values are real, and data-dependent shapes, loops and branches are those of a real device.
What a real device refuses is refused:

- operators on tensors of different devices, by the rule that each operator has in PyTorch's ``native_functions.yaml``
  (``device_check``): operators of TensorIterator accept one CPU scalar tensor (0-dim), all others none. Indices on the
  CPU may index a CUDA tensor, but not the other way round;
- ``.numpy()`` and ``np.asarray``;
- operators for which the installed PyTorch has no CUDA kernel (known only for a CUDA build of PyTorch);
- integer matrix products, convolutions and poolings, which only the CPU has;
- generators of another device.

Every point at which the host must wait for the device is recorded with its place in the code: ``.item()``,
``bool(tensor)``, ``nonzero``, boolean masks, ``unique``, copies to the host, and copies from memory that is not pinned.

Not emulated are dtypes that a CUDA kernel lacks beside those above, device-side assertions, memory, streams and races
between them, differences in rounding, and speed. One process and one thread may issue work.

It consists of a wrapper subclass, a ``TorchDispatchMode`` for factory functions, a backward pass in Python, and
stand-ins for the functions of ``torch.cuda`` that ask the driver.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator

import torch

from visionkit.testing.fake_cuda.device import FakeCuda
from visionkit.testing.fake_cuda.log import Log, Synchronization
from visionkit.testing.fake_cuda.runtime import patches
from visionkit.testing.fake_cuda.tensor import FakeCudaTensor

__all__ = ["FakeCuda", "Log", "Synchronization", "fake_cuda"]


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """A CUDA device while the context lasts.

    Raises:
        RuntimeError: there is a real CUDA device, or the context is nested.
    """
    if FakeCudaTensor.active is not None:
        raise RuntimeError("fake_cuda cannot be used inside itself")
    if torch.cuda.is_available():
        raise RuntimeError("there is a real CUDA device, which fake_cuda cannot replace")
    # It reads the functions of torch.cuda when it is first imported, so that has to happen before they are replaced.
    importlib.import_module("torch._dynamo")
    torch._C._ensureCUDADeviceGuardSet()  # guards that do nothing; they stay for the life of the process
    lifts = torch._C._only_lift_cpu_tensors()
    gpu = FakeCuda()
    with contextlib.ExitStack() as stack:
        for patch in patches():
            stack.enter_context(patch)
        torch._C._set_only_lift_cpu_tensors(True)
        FakeCudaTensor.active = gpu
        try:
            stack.enter_context(gpu)
            yield gpu
        finally:
            FakeCudaTensor.active = None
            torch._C._set_only_lift_cpu_tensors(lifts)
