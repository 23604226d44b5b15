"""Random operators and statistics for the tests."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from xvolution.nn import XVOLUTIONS, XVolution
from xvolution.nn.branches import ATTENTION_BRANCHES


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch norm statistics and affine parameters; fresh ones hide every folding bug."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator, dtype=torch.float64))

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                uniform(module.running_mean, -0.5, 0.5)
                uniform(module.running_var, 0.5, 2.0)
                uniform(module.weight, 0.5, 1.5)
                uniform(module.bias, -0.5, 0.5)
            if getattr(module, "mean_weight", None) is not None:
                uniform(module.mean_weight, -1.0, 1.0)
    return model


NORMS: dict[str, Any] = {
    "batch": nn.BatchNorm2d,
    "none": None,
    "group": lambda channels: nn.GroupNorm(2, channels),
    "instance": lambda channels: nn.GroupNorm(channels, channels),
}


@st.composite
def operators(
    draw: st.DrawFn,
    branches: tuple[str, ...] = ("hadamard", "dot", "linear", "global", "image", "shared"),
    dims: tuple[int, ...] = (1, 2, 2, 3),
    norms: tuple[str, ...] = ("batch", "batch", "none"),
) -> XVolution:
    """Any legal X-volution on 8 -> 16 channels in fp64, in eval mode with random statistics."""
    spatial = draw(st.sampled_from(dims))
    sizes = [1, 2, 3, 5] if spatial < 3 else [1, 2, 3]

    def each(values: list[int]) -> tuple[int, ...]:
        return tuple(draw(st.sampled_from(values)) for _ in range(spatial))

    padding: Any = draw(st.sampled_from([0, 1, 2, "mixed", "same", "valid", "same_upper"]))
    geometry = {
        "kernel_size": each(sizes),
        "stride": 1 if padding == "same" else each([1, 2, 3]),
        "padding": each([1, 2]) if padding == "mixed" else padding,
        "dilation": each([1, 2]),
        "groups": draw(st.sampled_from([1, 1, 2, 4, 8])),
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    }
    norm = draw(st.sampled_from(norms))
    options: dict[str, Any] = {"norm_layer": NORMS[norm]} | draw(branch_options(draw(st.sampled_from(branches))))
    several = norm in ("batch", "none") and options.get("attention") != "shared"
    options["num_conv_branches"] = draw(st.sampled_from([1, 1, 2, 3])) if several else 1
    seed = draw(st.integers(0, 2**16))
    torch.manual_seed(seed)
    operator = XVOLUTIONS[spatial](8, 16, **geometry, **options, zero_init=False, dtype=torch.float64).eval()
    return randomize(operator, seed)


@st.composite
def branch_options(draw: st.DrawFn, branch: str) -> dict[str, Any]:
    """Options of one attention branch."""
    if branch == "hadamard":
        return {
            "gate": draw(st.sampled_from(["identity", "sigmoid", "tanh"])),
            "window": draw(st.sampled_from([None, 3, 5])),
            "shift_distance": draw(st.sampled_from([None, 1, 2, (1, 2), (1, 3)])),
            "query_context": draw(st.booleans()),
            "global_term": draw(st.booleans()),
            "query_norm": draw(st.booleans()),
            "window_norm": draw(st.booleans()),
        }
    heads = draw(st.sampled_from([1, 2]))
    if branch == "dot":
        return {"similarity": "dot", "heads": heads, "window": draw(st.sampled_from([None, 3]))}
    assert branch in ATTENTION_BRANCHES
    if branch == "image":
        gate, separable, keys = (
            draw(st.sampled_from([None, "identity", "tanh"])),
            draw(st.booleans()),
            draw(st.booleans()),
        )
        return {"attention": "image", "gate": gate, "separable": separable, "channel_keys": keys}
    if branch == "shared":
        gate, window = draw(st.sampled_from([None, "identity", "tanh", "one"])), draw(st.sampled_from([None, 2, 3]))
        return {"attention": "shared", "gate": gate, "window": window, "global_term": draw(st.booleans())}
    if branch == "global":
        return {"attention": "global", "heads": heads, "query_key_norm": draw(st.booleans())}
    return {"attention": branch, "heads": heads}


def inputs_for(operator: XVolution, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A batch of two with as many dimensions as the operator, large enough for every window of ``operators``."""
    sizes = {1: (23,), 2: (11, 13), 3: (9, 9, 10)}[operator.dims]
    return torch.randn(2, 8, *sizes, dtype=dtype)


class SmallNet(nn.Module):
    """Residual network in two stages that torch.fx traces."""

    def __init__(self, channels: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        self.layer1 = Residual(channels)
        self.layer2 = Residual(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer2(self.layer1(self.stem_norm(self.stem(x)).relu()))
        return self.head(x.mean((2, 3)))


class Residual(nn.Module):
    """conv-norm-relu-conv-norm and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(self.conv1(x)).relu()
        return (x + self.norm2(self.conv2(y))).relu()
