"""The pool of pictures that a discriminator is shown again (Shrivastava et al., CVPR 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visionkit.types.device import constant, on_host


class PicturePool(nn.Module):
    """What a generator has made of late. All of it is buffers, so a run that is resumed goes on with the same pool.

    Pictures are kept in whole bytes, as those of files are. One that is larger than the pool is cut out at a random
    place: who judges patches does not mind.

    Args:
        capacity: how many pictures; 0: none, and everything is passed on.
        side: largest height and width of what is kept.
    """

    local_buffers = ("pictures", "sizes", "count")
    """In a distributed run each process has a pool of its own."""

    pictures: Tensor
    sizes: Tensor
    count: Tensor

    def __init__(self, capacity: int, side: int) -> None:
        super().__init__()
        self.capacity, self.side = capacity, side
        self.register_buffer("pictures", torch.zeros(capacity, 3, side, side, dtype=torch.uint8))
        self.register_buffer("sizes", torch.zeros(capacity, 2, dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def exchange(self, pictures: Tensor) -> list[Tensor]:
        """One picture (3, h, w) for each that is given, (B, 3, H, W) in -1 ... 1.

        Until the pool is full, a picture is kept and comes back. Then, half of the time, it takes the place of one that
        is kept, which comes back instead; else it comes back and is not kept.
        """
        count, sizes = on_host((self.count, self.sizes))
        filled, kept_sizes, out = int(count), sizes.tolist(), []
        for picture in pictures:
            if filled < self.capacity:
                kept_sizes[filled] = self._keep(filled, picture)
                filled += 1
                out.append(picture)
            elif self.capacity and float(torch.rand(())) < 0.5:
                place = int(torch.randint(self.capacity, ()))
                out.append(self._kept(place, kept_sizes[place]).to(picture))
                kept_sizes[place] = self._keep(place, picture)
            else:
                out.append(picture)
        self.count.fill_(filled)
        self.sizes.copy_(constant(kept_sizes, self.sizes).view_as(self.sizes))
        return out

    def _keep(self, place: int, picture: Tensor) -> list[int]:
        """Keeps a picture and returns the height and width of what is kept."""
        height, width = (min(side, self.side) for side in picture.shape[1:])
        top, left = (int(torch.randint(side - kept + 1, ())) if side > kept else 0
                     for side, kept in zip(picture.shape[1:], (height, width)))  # fmt: skip
        part = picture[:, top : top + height, left : left + width].float()
        self.pictures[place, :, :height, :width] = ((part + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return [height, width]

    def _kept(self, place: int, size: list[int]) -> Tensor:
        height, width = size
        return self.pictures[place, :, :height, :width].float() / 127.5 - 1.0
