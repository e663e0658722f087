"""Separable convolution: every channel by itself, then a mixture of channels (Chollet, CVPR 2017)."""

from __future__ import annotations

from torch import Tensor, nn

from visionkit.layers.norm import NormName, make_norm


class SeparableConv(nn.Module):
    """A 3x3 convolution of each channel (``depthwise``), then a 1x1 convolution over channels (``pointwise``).

    DeepLabv3+ normalises between the two and after them (Chen et al., ECCV 2018, section 3.2); Xception only after
    them, and has no activation between.

    Args:
        inputs, outputs: channels.
        stride, dilation: of the depthwise convolution, whose padding keeps the size (times 1 / ``stride``).
        norm: after the pointwise convolution; ``None`` for none, and a bias instead.
        between: ``"norm"`` for a normalisation between the two, ``"norm_act"`` for ReLU as well, ``None`` for neither.
        act: whether ReLU follows at the end.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        norm: NormName | None = None,
        between: str | None = None,
        act: bool = False,
    ) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, dilation, dilation, groups=inputs, bias=False)
        middle: list[nn.Module] = [] if between is None else [make_norm(norm or "batch", inputs)]
        middle += [nn.ReLU(inplace=True)] if between == "norm_act" else []
        self.between = nn.Sequential(*middle)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=norm is None)
        self.norm = nn.Identity() if norm is None else make_norm(norm, outputs)
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride), rounded up."""
        return self.act(self.norm(self.pointwise(self.between(self.depthwise(x)))))  # type: ignore[no-any-return]
