"""State dicts of published models in any size: the names and shapes of their tensors, without values.

Written from the structure of each model. A test compares the published sizes with the fixtures.
"""

from __future__ import annotations

from collections.abc import Sequence

Shapes = dict[str, tuple[int, ...]]


def conv(name: str, outputs: int, inputs: int, kernel: int = 1, *, bias: bool = False) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (outputs, inputs, kernel, kernel)}
    return shapes | ({f"{name}.bias": (outputs,)} if bias else {})


def deconv(name: str, inputs: int, outputs: int, kernel: int, *, bias: bool = False) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (inputs, outputs, kernel, kernel)}
    return shapes | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, channels: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    shapes: Shapes = {f"{name}.{part}": (channels,) for part in parts}
    return shapes | {f"{name}.num_batches_tracked": ()}


def bottlenecks(
    stage: str, count: int, inputs: int, planes: int, names: Sequence[tuple[str, str]], first: int
) -> Shapes:
    """Blocks of a ResNet; ``names`` are those of convolution and norm in a block, the shortcut's last."""
    shapes: Shapes = {}
    for i in range(count):
        block, before = f"{stage}{i + first}.", inputs if i == 0 else 4 * planes
        sizes = [(planes, before, 1), (planes, planes, 3), (4 * planes, planes, 1)]
        if i == 0:
            sizes.append((4 * planes, before, 1))
        for (conv_name, norm_name), size in zip(names, sizes):
            shapes |= conv(block + conv_name, *size) | norm(block + norm_name, size[0])
    return shapes


TIMM = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("downsample.0", "downsample.1"))


def resnet_stages(
    prefix: str, layers: Sequence[int], inputs: int = 64, numbers: Sequence[int] = (1, 2, 3, 4)
) -> Shapes:
    shapes: Shapes = {}
    for number, count, planes in zip(numbers, layers, (64, 128, 256, 512)):
        shapes |= bottlenecks(f"{prefix}{number}.", count, inputs, planes, TIMM, 0)
        inputs = 4 * planes
    return shapes


def basic_stages(layers: Sequence[int]) -> Shapes:
    shapes, inputs = {}, 64
    for number, count, planes in zip((1, 2, 3, 4), layers, (64, 128, 256, 512)):
        for i in range(count):
            block = f"layer{number}.{i}."
            shapes |= conv(f"{block}conv1", planes, inputs, 3) | norm(f"{block}bn1", planes)
            shapes |= conv(f"{block}conv2", planes, planes, 3) | norm(f"{block}bn2", planes)
            if inputs != planes:
                shapes |= conv(f"{block}downsample.0", planes, inputs) | norm(f"{block}downsample.1", planes)
            inputs = planes
    return shapes


def pspnet(layers: Sequence[int], classes: int, bins: int = 4, *, aux: bool = True) -> Shapes:
    """``PSPNet`` of hszhao/semseg."""
    shapes: Shapes = {}
    for place, outputs, inputs in ((0, 64, 3), (3, 64, 64), (6, 128, 64)):
        shapes |= conv(f"layer0.{place}", outputs, inputs, 3) | norm(f"layer0.{place + 1}", outputs)
    shapes |= resnet_stages("layer", layers, 128)
    for i in range(bins):
        shapes |= conv(f"ppm.features.{i}.1", 2048 // bins, 2048) | norm(f"ppm.features.{i}.2", 2048 // bins)
    for name, inputs, hidden in (("cls", 4096, 512), ("aux", 1024, 256)):
        if aux or name == "cls":
            shapes |= conv(f"{name}.0", hidden, inputs, 3) | norm(f"{name}.1", hidden)
            shapes |= conv(f"{name}.4", classes, hidden, bias=True)
    return shapes


def _unit(name: str, outputs: int, inputs: int, kernel: int = 1) -> Shapes:
    return conv(f"{name}.conv", outputs, inputs, kernel) | norm(f"{name}.bn", outputs)


def deeplab_pytorch(version: str, layers: Sequence[int], classes: int, rates: int) -> Shapes:
    """``DeepLabV2``, ``V3`` (``"3"``) and ``V3Plus`` (``"3+"``) of kazuto1011/deeplab-pytorch."""
    names = tuple((f"{part}.conv", f"{part}.bn") for part in ("reduce", "conv3x3", "increase", "shortcut"))
    shapes, inputs = _unit("layer1.conv1", 64, 3, 7), 64
    for number, count, planes in zip((2, 3, 4, 5), layers, (64, 128, 256, 512)):
        shapes |= bottlenecks(f"layer{number}.block", count, inputs, planes, names, 1)
        inputs = 4 * planes
    if version == "2":
        for i in range(rates):
            shapes |= conv(f"aspp.c{i}", classes, 2048, 3, bias=True)
        return shapes
    shapes |= _unit("aspp.stages.c0", 256, 2048)
    for i in range(rates):
        shapes |= _unit(f"aspp.stages.c{i + 1}", 256, 2048, 3)
    shapes |= _unit("aspp.stages.imagepool.conv", 256, 2048) | _unit("fc1", 256, 256 * (rates + 2))
    if version == "3":
        return shapes | conv("fc2", classes, 256, bias=True)
    shapes |= _unit("reduce", 48, 256) | _unit("fc2.conv1", 256, 304, 3) | _unit("fc2.conv2", 256, 256, 3)
    return shapes | conv("fc2.conv3", classes, 256, bias=True)


def _deeplab_head(fine: int, classes: int) -> Shapes:
    shapes: Shapes = {}
    for i in range(4):
        shapes |= conv(f"aspp.aspp{i + 1}.atrous_conv", 256, 2048, 3 if i else 1) | norm(f"aspp.aspp{i + 1}.bn", 256)
    shapes |= conv("aspp.global_avg_pool.1", 256, 2048) | norm("aspp.global_avg_pool.2", 256)
    shapes |= conv("aspp.conv1", 256, 1280) | norm("aspp.bn1", 256)
    shapes |= conv("decoder.conv1", 48, fine) | norm("decoder.bn1", 48)
    for place, inputs in ((0, 304), (4, 256)):
        shapes |= conv(f"decoder.last_conv.{place}", 256, inputs, 3) | norm(f"decoder.last_conv.{place + 1}", 256)
    return shapes | conv("decoder.last_conv.8", classes, 256, bias=True)


def deeplab_resnet(layers: Sequence[int], classes: int) -> Shapes:
    """``DeepLab(backbone="resnet")`` of jfzhang95/pytorch-deeplab-xception."""
    shapes = conv("backbone.conv1", 64, 3, 7) | norm("backbone.bn1", 64)
    return shapes | resnet_stages("backbone.layer", layers) | _deeplab_head(256, classes)


def deeplab_xception(middle: int, classes: int) -> Shapes:
    """``DeepLab(backbone="xception")`` of jfzhang95/pytorch-deeplab-xception."""

    def separable(name: str, outputs: int, inputs: int) -> Shapes:
        return (
            conv(f"{name}.conv1", inputs, 1, 3)
            | norm(f"{name}.bn", inputs)
            | conv(f"{name}.pointwise", outputs, inputs)
        )

    shapes = conv("backbone.conv1", 32, 3, 3) | norm("backbone.bn1", 32)
    shapes |= conv("backbone.conv2", 64, 32, 3) | norm("backbone.bn2", 64)
    blocks = [(64, (128, 128, 128)), (128, (256, 256, 256)), (256, (728, 728, 728))]
    blocks += [(728, (728, 728, 728))] * middle + [(728, (728, 1024, 1024))]
    for i, (inputs, widths) in enumerate(blocks, start=1):
        block = f"backbone.block{i}."
        if i <= 3 or inputs != widths[-1]:
            shapes |= conv(f"{block}skip", widths[-1], inputs) | norm(f"{block}skipbn", widths[-1])
        # A ReLU stands before each convolution, but for the first ones of the first two blocks.
        for j, (before, after) in enumerate(zip((inputs, *widths), widths)):
            place = 3 * j + (i > 2)
            shapes |= separable(f"{block}rep.{place}", after, before) | norm(f"{block}rep.{place + 1}", after)
    for i, (inputs, outputs) in enumerate(((1024, 1536), (1536, 1536), (1536, 2048)), start=3):
        shapes |= separable(f"backbone.conv{i}", outputs, inputs) | norm(f"backbone.bn{i}", outputs)
    return shapes | _deeplab_head(128, classes)


def stacked_hourglass(stacks: int, width: int, keypoints: int, depth: int) -> Shapes:
    """``PoseNet`` of princeton-vl/pytorch_stacked_hourglass."""

    def biased(name: str, outputs: int, inputs: int, kernel: int = 1) -> Shapes:
        return conv(f"{name}.conv", outputs, inputs, kernel, bias=True)

    def residual(name: str, inputs: int, outputs: int) -> Shapes:
        half = outputs // 2
        shapes = norm(f"{name}.bn1", inputs) | biased(f"{name}.conv1", half, inputs)
        shapes |= norm(f"{name}.bn2", half) | biased(f"{name}.conv2", half, half, 3)
        shapes |= norm(f"{name}.bn3", half) | biased(f"{name}.conv3", outputs, half)
        return shapes | biased(f"{name}.skip_layer", outputs, inputs)

    def hourglass(name: str, levels: int) -> Shapes:
        inner = hourglass(f"{name}.low2", levels - 1) if levels > 1 else residual(f"{name}.low2", width, width)
        rows = (residual(f"{name}.{part}", width, width) for part in ("up1", "low1", "low3"))
        return inner | {key: shape for row in rows for key, shape in row.items()}

    shapes = biased("pre.0", 64, 3, 7) | norm("pre.0.bn", 64)
    shapes |= residual("pre.1", 64, 128) | residual("pre.3", 128, 128) | residual("pre.4", 128, width)
    for i in range(stacks):
        shapes |= hourglass(f"hgs.{i}.0", depth) | residual(f"features.{i}.0", width, width)
        shapes |= biased(f"features.{i}.1", width, width) | norm(f"features.{i}.1.bn", width)
        shapes |= biased(f"outs.{i}", keypoints, width)
        if i < stacks - 1:
            shapes |= conv(f"merge_features.{i}.conv.conv", width, width, bias=True)
            shapes |= conv(f"merge_preds.{i}.conv.conv", width, keypoints, bias=True)
    return shapes


def corner_hourglass(
    stacks: int, channels: Sequence[int], blocks: Sequence[int], *, stem: int = 128, outputs: int = 256
) -> Shapes:
    """The hourglass of princeton-vl/CornerNet."""

    def block(name: str, inputs: int, after: int, stride: int = 1) -> Shapes:
        shapes = conv(f"{name}.conv1", after, inputs, 3) | norm(f"{name}.bn1", after)
        shapes |= conv(f"{name}.conv2", after, after, 3) | norm(f"{name}.bn2", after)
        if stride != 1 or inputs != after:
            shapes |= conv(f"{name}.skip.0", after, inputs) | norm(f"{name}.skip.1", after)
        return shapes

    def row(name: str, widths: Sequence[int], stride: int = 1) -> Shapes:
        shapes: Shapes = {}
        for i, (inputs, after) in enumerate(zip(widths, widths[1:])):  # noqa: RUF007
            shapes |= block(f"{name}.{i}", inputs, after, stride if i == 0 else 1)
        return shapes

    def hourglass(name: str, level: int) -> Shapes:
        here, below, count = channels[level], channels[level + 1], blocks[level]
        shapes = row(f"{name}.up1", [here] * (count + 1)) | row(f"{name}.low1", [here, *[below] * count], 2)
        if level + 2 < len(channels):
            shapes |= hourglass(f"{name}.low2", level + 1)
        else:
            shapes |= row(f"{name}.low2", [below] * (blocks[level + 1] + 1))
        return shapes | row(f"{name}.low3", [below] * count + [here])

    width = channels[0]
    shapes = _unit("pre.0", stem, 3, 7) | block("pre.1", stem, width, 2)
    for i in range(stacks):
        shapes |= hourglass(f"kps.{i}", 0) | _unit(f"cnvs.{i}", outputs, width, 3)
        if i < stacks - 1:
            shapes |= block(f"inters.{i}", width, width)
            shapes |= conv(f"inters_.{i}.0", width, width) | norm(f"inters_.{i}.1", width)
            shapes |= conv(f"cnvs_.{i}.0", width, outputs) | norm(f"cnvs_.{i}.1", width)
    return shapes


def corner_points(stacks: int, classes: int, kinds: Sequence[str], *, outputs: int = 256, hidden: int = 128) -> Shapes:
    """The branches of CornerNet, and of Duankaiwen/CenterNet where ``ct`` is one of the kinds of points."""
    shapes: Shapes = {}
    for kind in kinds:
        for i in range(stacks):
            pool = f"{kind}_cnvs.{i}."
            shapes |= _unit(f"{pool}p1_conv1", hidden, outputs, 3) | _unit(f"{pool}p2_conv1", hidden, outputs, 3)
            shapes |= conv(f"{pool}p_conv1", outputs, hidden, 3) | norm(f"{pool}p_bn1", outputs)
            shapes |= conv(f"{pool}conv1", outputs, outputs) | norm(f"{pool}bn1", outputs)
            shapes |= _unit(f"{pool}conv2", outputs, outputs, 3)
            if "ct" in kinds and kind != "ct":
                for j in (1, 2):
                    shapes |= _unit(f"{pool}look_conv{j}", hidden, outputs, 3)
                    shapes |= conv(f"{pool}P{j}_look_conv", hidden, hidden, 3)
            for what, channels in (("heats", classes), ("tags", 1), ("regrs", 2)):
                if kind != "ct" or what != "tags":
                    shapes |= maps(f"{kind}_{what}.{i}", channels, outputs, outputs, ("0.conv", "1"))
    return shapes


def maps(name: str, outputs: int, hidden: int, inputs: int, parts: tuple[str, str] = ("0", "2")) -> Shapes:
    return conv(f"{name}.{parts[0]}", hidden, inputs, 3, bias=True) | conv(
        f"{name}.{parts[1]}", outputs, hidden, bias=True
    )


def centernet_hourglass(stacks: int, channels: Sequence[int], blocks: Sequence[int], classes: int) -> Shapes:
    """``ctdet`` of xingyizhou/CenterNet on an hourglass."""
    shapes = corner_hourglass(stacks, channels, blocks)
    for i in range(stacks):
        for name, outputs in (("hm", classes), ("wh", 2), ("reg", 2)):
            shapes |= maps(f"{name}.{i}", outputs, 256, 256, ("0.conv", "1"))
    return shapes


def centernet_resnet(
    layers: Sequence[int],
    classes: int,
    widths: Sequence[int],
    *,
    deformable: bool,
    basic: bool = True,
    hidden: int = 64,
    sizes: int = 2,
) -> Shapes:
    """``ctdet`` of xingyizhou/CenterNet on a ResNet of basic blocks or bottlenecks."""
    shapes = conv("conv1", 64, 3, 7) | norm("bn1", 64)
    shapes |= basic_stages(layers) if basic else resnet_stages("layer", layers)
    inputs = 512 if basic else 2048
    for i, width in enumerate(widths):
        if deformable:
            place = f"deconv_layers.{6 * i}"
            shapes |= conv(place, width, inputs, 3, bias=True) | norm(f"deconv_layers.{6 * i + 1}", width)
            shapes |= conv(f"{place}.conv_offset_mask", 27, inputs, 3, bias=True)
            shapes |= deconv(f"deconv_layers.{6 * i + 3}", width, width, 4) | norm(f"deconv_layers.{6 * i + 4}", width)
        else:
            shapes |= deconv(f"deconv_layers.{3 * i}", inputs, width, 4) | norm(f"deconv_layers.{3 * i + 1}", width)
        inputs = width
    for name, outputs in (("hm", classes), ("wh", sizes), ("reg", 2)):
        shapes |= maps(name, outputs, hidden, inputs)
    return shapes


def yolact(layers: Sequence[int], classes: int, priors: int = 3, prototypes: int = 32) -> Shapes:
    """``Yolact`` of dbolya/yolact on a ResNet; ``classes`` without the background."""
    shapes = conv("backbone.conv1", 64, 3, 7) | norm("backbone.bn1", 64)
    shapes |= resnet_stages("backbone.layers.", layers, numbers=(0, 1, 2, 3))
    for i, inputs in enumerate((2048, 1024, 512)):
        shapes |= conv(f"fpn.lat_layers.{i}", 256, inputs, bias=True)
        shapes |= conv(f"fpn.pred_layers.{i}", 256, 256, 3, bias=True)
    for i in range(2):
        shapes |= conv(f"fpn.downsample_layers.{i}", 256, 256, 3, bias=True)
    for i in (0, 2, 4, 8):
        shapes |= conv(f"proto_net.{i}", 256, 256, 3, bias=True)
    shapes |= conv("proto_net.10", prototypes, 256, bias=True)
    head = "prediction_layers.0."
    shapes |= conv(f"{head}upfeature.0", 256, 256, 3, bias=True)
    for name, each in (("bbox", 4), ("conf", classes + 1), ("mask", prototypes)):
        shapes |= conv(f"{head}{name}_layer", priors * each, 256, 3, bias=True)
    return shapes | conv("semantic_seg_conv", classes, 256, bias=True)


def cyclegan(width: int, blocks: int, *, affine: bool = False, dropout: bool = False) -> Shapes:
    """``ResnetGenerator`` of junyanz/pytorch-CycleGAN-and-pix2pix; ``affine`` for batch norms."""
    shapes: Shapes = {}

    def unit(name: str, place: int, made: Shapes) -> None:
        shapes.update(made)
        if affine:
            channels = next(iter(made.values()))[1 if name == "up" else 0]
            first = next(iter(made)).removesuffix(".weight")
            shapes.update(norm(f"{first.rpartition('.')[0]}.{place + 1}", channels))

    bias = not affine
    for i, (outputs, inputs, kernel) in enumerate(((width, 3, 7), (2 * width, width, 3), (4 * width, 2 * width, 3))):
        unit("down", 1 + 3 * i, conv(f"model.{1 + 3 * i}", outputs, inputs, kernel, bias=bias))
    for i in range(10, 10 + blocks):
        for place in (1, 6 if dropout else 5):
            unit("block", place, conv(f"model.{i}.conv_block.{place}", 4 * width, 4 * width, 3, bias=bias))
    for i, inputs in enumerate((4 * width, 2 * width)):
        place = 10 + blocks + 3 * i
        unit("up", place, deconv(f"model.{place}", inputs, inputs // 2, 3, bias=bias))
    return shapes | conv(f"model.{10 + blocks + 7}", 3, width, 7, bias=True)


def pix2pix(width: int, downs: int, *, affine: bool = True) -> Shapes:
    """``UnetGenerator`` of junyanz/pytorch-CycleGAN-and-pix2pix; not ``affine`` for instance norms."""
    widths = [3, *(width * min(2**i, 8) for i in range(downs))]
    shapes: Shapes = {}
    prefix, bias = "model.", not affine
    for i in range(downs):
        outer, inner = widths[i], widths[i + 1]
        first, last = i == 0, i == downs - 1
        shapes |= conv(f"{prefix}model.{0 if first else 1}", inner, outer, 4, bias=bias)
        up = 3 if first or last else 5
        shapes |= deconv(f"{prefix}model.{up}", inner if last else 2 * inner, outer, 4, bias=bias or first)
        if affine and not first:
            shapes |= norm(f"{prefix}model.{up + 1}", outer)
            shapes |= {} if last else norm(f"{prefix}model.2", inner)
        prefix += f"model.{1 if first else 3}."
    return shapes
