"""The emulated device refuses what a real one refuses, and records where the host waits."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visionkit.testing.fake_cuda import fake_cuda

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real CUDA device cannot be emulated")


def test_values_and_gradients_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    x, twin = torch.randn(2, 3, 8, 8), copy.deepcopy(model)
    loss = F.cross_entropy(model(x), torch.tensor([0, 1]))
    loss.backward()
    with fake_cuda():
        twin.to("cuda")
        other = F.cross_entropy(twin(x.to("cuda")), torch.tensor([0, 1]).to("cuda"))
        other.backward()
        assert other.device.type == "cuda"
        torch.testing.assert_close(other.cpu(), loss)
        for mine, theirs in zip(model.parameters(), twin.parameters()):
            torch.testing.assert_close(theirs.grad.cpu(), mine.grad)
    assert not torch.cuda.is_available()


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat((x, torch.ones(3))),
        lambda x: torch.ones(3)[torch.zeros(2, dtype=torch.int64).to("cuda")],
        lambda x: torch.where(torch.ones(3, dtype=torch.bool), x, 0.0),
        lambda x: x.numpy(),
        lambda x: np.asarray(x),
        lambda x: torch.ones(2, 2, dtype=torch.int64).to("cuda") @ torch.ones(2, 2, dtype=torch.int64).to("cuda"),
        lambda x: torch.rand(3, device="cuda", generator=torch.Generator()),
    ],
)
def test_what_a_device_refuses(mix) -> None:
    with fake_cuda():
        x = torch.ones(3, device="cuda")
        with pytest.raises((RuntimeError, TypeError, NotImplementedError)):
            mix(x)


def test_cpu_scalars_may_be_mixed_in() -> None:
    with fake_cuda() as gpu:
        assert (torch.ones(3, device="cuda") * torch.tensor(2.0)).cpu().tolist() == [2, 2, 2]
        assert len(gpu.log.synchronizations) == 1


@pytest.mark.parametrize(
    ("work", "kinds"),
    [
        (lambda x: x * 2 + x.sum(), []),
        (lambda x: x.sum().item(), ["item"]),
        (lambda x: bool(x.any()), ["item"]),
        (lambda x: x[x > 0], ["mask"]),
        (lambda x: x.masked_fill(x > 0, 1.0), []),
        (lambda x: x.nonzero(), ["size"]),
        (lambda x: x.cpu(), ["d2h"]),
        (lambda x: torch.tensor([1.0, 2.0], device="cuda"), ["h2d"]),
        (lambda x: torch.ones(3).to("cuda", non_blocking=True), ["h2d-pageable"]),
        (lambda x: torch.ones(3).pin_memory().to("cuda", non_blocking=True), []),
        (lambda x: x.unique(), ["size"]),
    ],
)
def test_where_the_host_waits(work, kinds: list[str]) -> None:
    with fake_cuda() as gpu:
        x = torch.ones(4, device="cuda")
        with gpu.recording() as log:
            work(x)
        assert [one.kind for one in log.synchronizations] == kinds
        assert all("test_fake_cuda.py" in one.where for one in log.synchronizations)


def test_autocast_rounds_as_on_a_device() -> None:
    with fake_cuda():
        layer, x = nn.Linear(4, 2).to("cuda"), torch.ones(1, 4, device="cuda")
        with torch.autocast("cuda", torch.float16):
            assert layer(x).dtype == torch.float16
            assert (layer(x).float() + 1).dtype == torch.float32


def test_a_state_is_saved_and_read() -> None:
    with fake_cuda():
        file = io.BytesIO()
        torch.save(nn.Linear(2, 2).to("cuda").state_dict(), file)
        file.seek(0)
        assert all(value.device.type == "cuda" for value in torch.load(file, map_location="cuda").values())


def test_one_device_at_a_time() -> None:
    with fake_cuda(), pytest.raises(RuntimeError, match="inside itself"), fake_cuda():
        pass
