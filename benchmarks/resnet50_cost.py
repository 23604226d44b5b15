"""What X-volution costs a ResNet-50: parameters, FLOPs and latency, plain, in training form and deployed.

python -m benchmarks.resnet50_cost --output results/resnet50.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from benchmarks.randomize import randomize_norms
from benchmarks.record import write_record
from xvolution import conversion_summary, convert, reparameterize
from xvolution.bench import count_flops, count_parameters, measure_latency


@torch.no_grad()
def measure(plain: nn.Module, stages: tuple[int, ...] | None, x: torch.Tensor) -> dict[str, Any]:
    """Convert, compare, deploy and time one network."""
    converted = convert(plain, stages=stages)
    unchanged = float((converted(x) - plain(x)).abs().max())
    trained = randomize_norms(converted)
    deployed = reparameterize(trained, x, fold_norms=True)
    folded = reparameterize(plain, x, fold_norms=True)
    latency = measure_latency(
        {
            "plain": lambda: plain(x),
            "plain, norms folded": lambda: folded(x),
            "training form": lambda: trained(x),
            "deployed": lambda: deployed(x),
        }
    )
    error = float((deployed(x) - trained(x)).abs().max() / trained(x).abs().max())
    return {
        "replaced": len(conversion_summary(converted).replaced),
        "largest_difference_after_conversion": unchanged,
        "relative_error_after_reparameterization": error,
        "parameters": {"plain": count_parameters(plain), "x-volution": count_parameters(converted)},
        "flops": {
            name: count_flops(model, x)
            for name, model in (("plain", plain), ("x-volution", trained), ("deployed", deployed))
        },
        "milliseconds": {name: 1e3 * latency.latencies[name].median for name in latency.latencies},
        "ratio_deployed": latency.ratio("deployed", "plain, norms folded"),
        "ratio_training_form": latency.ratio("training form", "plain"),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    x = torch.randn(1, 3, options.size, options.size)
    builders = {"torchvision": lambda: torchvision.models.resnet50(), "timm": lambda: timm.create_model("resnet50")}
    results = {
        f"{source} resnet50, {'stage 3' if stages else 'all stages'}": measure(randomize_norms(build()), stages, x)
        for source, build in builders.items()
        for stages in ((3,), None)
    }
    for name, result in results.items():
        print(name, result)
    if options.output:
        write_record(options.output, {"input": list(x.shape), "results": results})


if __name__ == "__main__":
    main()
