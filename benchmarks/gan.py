"""A training step of pix2pix and of CycleGAN, against a straightforward loop that is written by hand around the very
same networks: one Adam a side, the same losses, the same pool of pictures.

Both start from the same weights and take the same batch in turn; the benchmark stops if two steps do not lead both to
the same weights.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._ready import ready
from visionkit.plugins import PluginManager
from visionkit.train.progress import Averages
from visionkit.train.step import Training
from visionkit.types import MixedBatch, PictureTarget

PIPELINE = """\
heads: {{picture: {head}}}
sources:
  shapes:
    name: painted
    train: {{source: {{name: shapes, root: "{root}", images: 4, seed: 0, size: {size}}}}}
train:
  steps: 1
  batch_size: 1
  channels_last: false
  optimizer: {{name: adamw, lr: 0.0002, betas: [0.5, 0.999], weight_decay: 0.0}}
"""
HEADS = {
    "pix2pix": "{{name: pix2pix, dropout: 0.0, downs: {downs}, width: {width}, judge_width: {width}}}",
    "cyclegan": "{{name: cyclegan, blocks: {blocks}, width: {width}, judge_width: {width}, pool_side: {size}}}",
}
BAR = 1.05


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Milliseconds a step, medians of interleaved rounds; quick: small networks and few rounds."""
    sizes = {"size": 64, "downs": 5, "blocks": 2, "width": 8} if quick else {
        "size": 128, "downs": 7, "blocks": 6, "width": 32
    }  # fmt: skip
    rounds = 3 if quick else 11
    rows = []
    for name, peer in (("pix2pix", Pix2PixByHand), ("cyclegan", CycleGANByHand)):
        with tempfile.TemporaryDirectory() as folder:
            text = PIPELINE.format(head=HEADS[name].format(**sizes), root=f"{folder}/data", size=sizes["size"])
            training, batch = ready(text, f"{name}.yaml", Path(folder), PluginManager())
            rows.append(compared(name, training, peer, batch, rounds))
    return rows


def compared(
    name: str, training: Training, peer: Callable[[Any], Pix2PixByHand | CycleGANByHand], batch: MixedBatch, rounds: int
) -> dict[str, Any]:
    """Ratios are taken round by round, so that a machine that slows down slows both."""
    device, head = training.fabric.device, training.run.model.head("picture")
    before, by_hand = copy.deepcopy(head), peer(copy.deepcopy(head))
    target = batch.targets["picture"][0]
    assert isinstance(target, PictureTarget)

    def ours() -> None:
        training.run.step = 0
        training.step([batch], Averages())

    def theirs() -> None:
        loaded = batch.images, target.picture[None]
        images, pictures = (x.to(device).contiguous().float() / 127.5 - 1.0 for x in loaded)
        by_hand.step(images, pictures)

    for step in (ours, theirs, ours, theirs):
        step()
    assert_equal(name, before, head, by_hand.head)

    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for i in range(rounds):
        for who, step in (("ours", ours), ("theirs", theirs))[:: 1 if i % 2 else -1]:
            start = now(device)
            step()
            times[who].append(now(device) - start)
    own, other = times["ours"], times["theirs"]
    ratio = median(a / b for a, b in zip(own, other))
    return {
        "name": f"a training step of {name}: {ratio:.3f}x the time of a loop by hand",
        "ours": f"{median(own) * 1e3:.0f} ms",
        "peer": f"by hand {median(other) * 1e3:.0f} ms",
        "ratio": 1 / ratio,
        "bar": 1 / BAR,
    }


def now(device: torch.device) -> float:
    """The clock, once the device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def assert_equal(name: str, start: nn.Module, ours: nn.Module, theirs: nn.Module) -> None:
    """Both have gone the same way from the start, but for what the order of sums does to single weights.

    This is asked after two steps: Adam makes whole steps of rounding errors where a gradient is almost 0, so that after
    a dozen even two loops by hand, on pixels that are 1e-7 apart, are half of their way apart.
    """
    before, one, other = (nn.utils.parameters_to_vector(m.parameters()).detach() for m in (start, ours, theirs))
    apart, moved = float((one.cpu() - other.cpu()).norm()), float((one.cpu() - before).norm())
    if not apart < 0.1 * moved:
        raise AssertionError(f"{name}: {apart:.4f} apart from the loop by hand, after a way of {moved:.4f}")


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=2e-4, betas=(0.5, 0.999))


def asked(networks: Iterable[nn.Module], gradient: bool) -> None:
    for network in networks:
        network.requires_grad_(gradient)


class Pix2PixByHand:
    """pix2pix as one would write it down.

    Args:
        head: whose networks are trained.
    """

    def __init__(self, head: Any) -> None:
        self.head, self.generator, self.judge = head, head.generator, head.discriminator
        self.of_generator, self.of_judge = adam(self.generator.parameters()), adam(self.judge.parameters())

    def step(self, images: Tensor, pictures: Tensor) -> None:
        """Images and pictures (B, 3, H, W) in -1 ... 1."""
        made = self.generator(images)
        asked([self.judge], False)
        judged = self.judge(torch.cat((images, made), 1))
        gan = F.binary_cross_entropy_with_logits(judged, torch.ones_like(judged))
        self.of_generator.zero_grad()
        (gan + 100.0 * F.l1_loss(made, pictures)).backward()
        self.of_generator.step()

        asked([self.judge], True)
        real, fake = (self.judge(torch.cat((images, x), 1)) for x in (pictures, made.detach()))
        self.of_judge.zero_grad()
        costs = (F.binary_cross_entropy_with_logits(real, torch.ones_like(real)),
                 F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake)))  # fmt: skip
        (0.5 * (costs[0] + costs[1])).backward()
        self.of_judge.step()


class Pool:
    """The last fifty pictures, of which one comes back half of the time."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def exchange(self, picture: Tensor) -> Tensor:
        """(1, 3, H, W) for the same."""
        if len(self.kept) < 50:
            self.kept.append(picture)
        elif torch.rand(()) < 0.5:
            place = int(torch.randint(50, ()))
            picture, self.kept[place] = self.kept[place], picture
        return picture


class CycleGANByHand:
    """CycleGAN as one would write it down.

    Args:
        head: whose networks are trained.
    """

    def __init__(self, head: Any) -> None:
        self.head, self.forth, self.back = head, head.forth, head.back
        self.judges = head.judge_first, head.judge_second
        self.of_generators = adam(chain(self.forth.parameters(), self.back.parameters()))
        self.of_judges = adam(chain(*(judge.parameters() for judge in self.judges)))
        self.pools = Pool(), Pool()

    def step(self, images: Tensor, pictures: Tensor) -> None:
        """Images of the first domain and pictures of the second, (1, 3, H, W) in -1 ... 1."""
        asked(self.judges, False)
        made, made_back = self.forth(images), self.back(pictures)
        judged = self.judges[1](made), self.judges[0](made_back)
        gan = sum(F.mse_loss(x, torch.ones_like(x)) for x in judged)
        cycle = F.l1_loss(self.back(made), images) + F.l1_loss(self.forth(made_back), pictures)
        identity = F.l1_loss(self.back(images), images) + F.l1_loss(self.forth(pictures), pictures)
        self.of_generators.zero_grad()
        (gan + 10.0 * cycle + 5.0 * identity).backward()
        self.of_generators.step()

        asked(self.judges, True)
        self.of_judges.zero_grad()
        for judge, pool, real, fake in zip(self.judges, self.pools, (images, pictures), (made_back, made)):
            of_real, of_fake = judge(real), judge(pool.exchange(fake.detach()))
            cost = F.mse_loss(of_real, torch.ones_like(of_real)) + F.mse_loss(of_fake, torch.zeros_like(of_fake))
            (0.5 * cost).backward()
        self.of_judges.step()
