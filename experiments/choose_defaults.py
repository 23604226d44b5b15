"""Which form of the pixel shift attention branch should be the default? Small ResNet-18s on Tiny-ImageNet's training split.

    python experiments/choose_defaults.py --data ../shared/data/tiny-imagenet --output results/defaults --seeds 3

Every run holds out a tenth of the training split and never reads ``val``. A finished run leaves ``VARIANT-seedN.json`` and is
not repeated, so the script can be stopped and started again, and several can share one output folder with different variants.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from record import write_record

from xvolution import XVolutionConfig
from xvolution.training import TrainConfig, train

STAGES = (2, 3)


def pssa(
    gate: Literal["identity", "sigmoid", "tanh"] = "identity",
    query_norm: bool = False,
    window_norm: bool = False,
    global_term: bool = False,
) -> XVolutionConfig:
    """The Hadamard branch with exactly these options, whatever the library's defaults are."""
    return XVolutionConfig(
        stages=STAGES, gate=gate, query_norm=query_norm, window_norm=window_norm, global_term=global_term
    )


VARIANTS: dict[str, XVolutionConfig | None] = {
    "conv": None,
    "pssa": pssa(),
    "pssa-norms": pssa(query_norm=True, window_norm=True),
    "pssa-sigmoid-window-norm": pssa("sigmoid", window_norm=True),
    "pssa-sigmoid-norms-global": pssa("sigmoid", True, True, True),
    "pssa-tanh-norms": pssa("tanh", True, True),
    "linear": XVolutionConfig(stages=STAGES, attention="linear"),
    "global": XVolutionConfig(stages=STAGES, attention="global"),
}


def run(variant: str, seed: int, data: str, output: Path) -> None:
    """Train one variant with one seed and write its result."""
    target = output / f"{variant}-seed{seed}.json"
    if target.exists():
        return
    config = VARIANTS[variant]
    recipe = TrainConfig(
        model="resnet18",
        model_kwargs={"channels": [32, 64, 128, 256]},
        small_images=True,
        operator="conv" if config is None else "xvolution",
        xvolution=config or XVolutionConfig(),
        data=data,
        holdout=0.1,
        image_size=32,
        limit_train_batches=80,
        epochs=6,
        batch_size=128,
        lr=0.2,
        warmup_epochs=1,
        precision="bf16",
        channels_last=True,
        workers=0,
        seed=seed,
        output=str(output / "runs" / f"{variant}-seed{seed}"),
        progress="lines",
    )
    result = train(recipe)
    record = {
        "variant": variant,
        "seed": seed,
        "metrics": result.metrics,
        "history": result.history,
        "xvolution": None if config is None else config.to_dict(),
        "recipe": {
            name: value for name, value in asdict(recipe).items() if name not in ("xvolution", "data", "output")
        },
        "data": "Tiny-ImageNet, training split, a tenth of it held out for these figures",
    }
    write_record(target, record)


def main() -> None:
    """Run all variants, seed by seed, so that an early stop leaves complete comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with Tiny-ImageNet's parquet files")
    parser.add_argument("--output", type=Path, default=Path("results/defaults"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for variant in options.variants:
            run(variant, seed, options.data, options.output)
            print(f"{variant} seed {seed} done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
