"""Validate pipelines with timm models of many families, at their native size and at another one.

Every model must either work or be rejected in one line that states the sizes it accepts, and what that line suggests
must work. Prints a table; run with ``python -m tests.stress.timm_models [MODEL ...]``.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import re
import sys
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection

import timm
import torch

from visionkit.config import parse_pipeline
from visionkit.plugins import PluginManager
from visionkit.train.validate import validate
from visionkit_backbones.timm_backbone import TimmBackbone

OTHER_SIZE = 96

# One small model or a few of each family; large models only where there is no smaller one.
MODELS = [
    "resnet18",
    "resnext50_32x4d",
    "seresnet18",
    "resnetv2_18",
    "resnest14d",
    "res2net50_14w_8s",
    "regnetx_002",
    "regnety_002",
    "repvgg_a0",
    "mobileone_s0",
    "botnet26t_256",
    "halonet26t",
    "lambda_resnet26t",
    "nf_resnet26",
    "skresnet18",
    "legacy_seresnet18",
    "dpn48b",
    "densenet121",
    "dla34",
    "ese_vovnet19b_slim",
    "hrnet_w18_small",
    "cspresnet50",
    "darknet17",
    "cs3darknet_s",
    "cspnext_tiny",
    "xception41",
    "legacy_xception",
    "inception_v3",
    "inception_v4",
    "inception_next_atto",
    "nasnetalarge",
    "vgg11",
    "selecsls42",
    "convnext_atto",
    "convnextv2_atto",
    "convmixer_1024_20_ks9_p14",
    "poolformer_s12",
    "caformer_s18",
    "edgenext_xx_small",
    "focalnet_tiny_srf",
    "mambaout_femto",
    "rdnet_tiny",
    "starnet_s050",
    "hgnetv2_b0",
    "fasternet_t0",
    "repghostnet_050",
    "repvit_m0_9",
    "shvit_s1",
    "swiftformer_xs",
    "efficientnet_b0",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035",
    "mobilenetv4_hybrid_medium_075",
    "lcnetv2_small",
    "hardcorenas_a",
    "ghostnet_050",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "rexnet_100",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_m0",
    "cpubone_nano",
    "iformer_t",
    "lowformer_b0",
    "fastvit_t8",
    "csatv2",
    "tiny_vit_5m_224",
    "levit_128s",
    "levit_conv_128s",
    "swin_tiny_patch4_window7_224",
    "swin_s3_tiny_224",
    "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224",
    "maxvit_nano_rw_256",
    "maxvit_rmlp_pico_rw_256",
    "coatnet_nano_rw_224",
    "coatnet_rmlp_nano_rw_224",
    "hiera_tiny_224",
    "hiera_small_abswin_256",
    "sam2_hiera_tiny",
    "mvitv2_tiny",
    "pvt_v2_b0",
    "twins_pcpvt_small",
    "twins_svt_small",
    "xcit_nano_12_p16_224",
    "cait_xxs24_224",
    "volo_d1_224",
    "davit_tiny",
    "nextvit_small",
    "visformer_tiny",
    "crossvit_9_240",
    "coat_lite_tiny",
    "convit_tiny",
    "pit_ti_224",
    "tnt_s_patch16_224",
    "nest_tiny",
    "gcvit_xxtiny",
    "sequencer2d_s",
    "mixer_s16_224",
    "gmixer_12_224",
    "resmlp_12_224",
    "gmlp_ti16_224",
    "vit_small_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_base_patch16_siglip_224",
    "beit_base_patch16_224",
    "deit_tiny_patch16_224",
    "eva02_tiny_patch14_224",
    "vit_small_patch16_dinov3",
    "vit_relpos_small_patch16_224",
    "vit_tiny_r_s16_p8_224",
    "vitamin_small_224",
    "flexivit_small",
    "samvit_base_patch16_224",
]


def outcome(model: str, size: int, options: str = "{}", divisor: int = 32) -> str:
    """What ``validate`` says of a model and square images: empty if it works, else the first problem.

    It runs in a process of its own, because some models crash PyTorch. That, and every exception that no component
    raised on purpose, is called ``unexpected``.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, model, size, options, divisor))
    process.start()
    sender.close()
    try:
        return str(receiver.recv())
    except EOFError:
        process.join()
        return f"unexpected end of the process: {process.exitcode}"
    finally:
        process.join()


def _send(sender: Connection, model: str, size: int, options: str, divisor: int) -> None:
    sender.send(_outcome(model, size, options, divisor))


def _outcome(model: str, size: int, options: str, divisor: int) -> str:
    with torch.device("meta"):
        level = list(TimmBackbone(model=model).spec)[-1]
    pipeline = parse_pipeline(f"""
backbone: {{name: timm, model: {model}, options: {options}}}
heads: {{c: {{name: classification, level: {level}}}}}
sources: {{a: {{name: class_shapes, train: {{images: 4, size: {size}}}, val: {{images: 1, size: {size}}}}}}}
train: {{batch_size: 2, workers: 0, size_divisor: {divisor}}}
evaluate: {{pictures: 0}}
""")
    problems = [check.detail for check in validate(pipeline, PluginManager()) if not check.ok]
    return problems[0] if problems else ""


def rows(models: list[str]) -> Iterator[tuple[str, int, str, bool]]:
    """For each model and size: what is said of it, and whether that is as it should be."""
    for model in models:
        native = timm.get_pretrained_cfg(model).input_size[1]
        for size in dict.fromkeys((native, OTHER_SIZE)):
            said = outcome(model, size)
            if not said:
                yield model, size, "works", True
            elif "unexpected" in said:
                yield model, size, said, False
            else:
                reason = said.partition("does not accept")[2]
                yield model, size, f"rejected: does not accept{reason}", bool(reason) and follows(model, size, reason)


def follows(model: str, size: int, advice: str) -> bool:
    """Whether the model works once the advice is followed."""
    if divisor := re.search(r"size_divisor: (\d+)", advice):
        return not outcome(model, size, divisor=int(divisor[1]))
    if options := re.search(r"options: (\{.*?\})", advice):
        return not outcome(model, size, options[1])
    if accepted := re.search(r"only of (\d+)x\1", advice):
        return not outcome(model, int(accepted[1]), divisor=1)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.timm_models", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=MODELS, help="timm's names; a fixed list if none")
    warnings.filterwarnings("ignore")
    logging.disable()
    counts = {"works": 0, "rejected": 0, "wrong": 0}
    print("| model | size | outcome |\n|---|--:|---|")
    for model, size, text, right in rows(parser.parse_args().models):
        counts["wrong" if not right else text.partition(":")[0]] += 1
        print(f"| {model} | {size} | {'' if right else 'WRONG: '}{text} |", flush=True)
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
