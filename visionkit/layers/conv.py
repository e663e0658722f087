"""The convolution that most heads are made of."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from visionkit.layers.norm import NormName, make_norm


class ConvNormAct(nn.Sequential):
    """Convolution, then normalisation, then ReLU; children ``conv``, ``norm``, ``act``, those that are asked for.

    Args:
        inputs, outputs: channels.
        kernel: side of the kernel; the padding keeps the size (times 1 / ``stride``).
        stride, dilation: of the convolution.
        norm: ``None`` for none; the convolution has a bias only then.
        act: whether ReLU follows.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        norm: NormName | None = None,
        act: bool = True,
    ) -> None:
        padding = dilation * (kernel - 1) // 2
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=norm is None)
        if norm is not None:
            layers["norm"] = make_norm(norm, outputs)
        if act:
            layers["act"] = nn.ReLU(inplace=True)
        super().__init__(layers)
