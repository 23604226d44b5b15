"""One case for each attention branch: what the contract suite (``tests/core/contract``) tests it with.

Whoever adds a branch adds its case here; a registered branch without one fails ``test_every_branch_has_a_case``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st
from torch import Tensor

from tests.core import references
from xvolution.attention import (
    AttentionConfig,
    ChannelGate,
    GatedDepthwise,
    Global,
    Linear,
    PixelShift,
    PixelShiftDot,
)
from xvolution.convolutions import geometry_of
from xvolution.geometry import Geometry


@dataclass(frozen=True)
class Case:
    """How one branch is tested.

    Attributes:
        variants: configurations by name, the default one first; each goes through every test.
        configs: any configuration that fits 8 -> 16 channels in up to 8 groups, in any number of dimensions.
        reference: the branch of an operator in eval mode by the slow reference: ``reference(operator, x)``, before the norm that
            follows the branch.
        refused: options with values that are refused, and a part of the sentence that says so.
        window: where the operator is a dynamic convolution, the window of its kernel at a pixel; None where it is none.
        captured: variants whose training step is compiled and whose graphs are captured, which takes seconds each.
    """

    variants: Mapping[str, AttentionConfig]
    configs: st.SearchStrategy[Any]
    reference: Callable[[Any, Tensor], Tensor]
    refused: tuple[tuple[dict[str, Any], str], ...]
    window: Callable[[Any], Geometry] | None = None
    captured: tuple[str, ...] = ("default",)

    @property
    def kind(self) -> type[AttentionConfig]:
        """The configuration's class."""
        return type(self.variants["default"])


RATIO = ({"attention_ratio": 0}, "attention_ratio is 0; it must be a positive number")
GATE = ({"gate": "relu"}, "gate is 'relu'; allowed are 'identity', 'sigmoid', 'tanh'")
WINDOW = ({"window": 0}, "window is 0; it must be a positive integer")
REDUCTION = ({"reduction": 0}, "reduction is 0; it must be a positive integer, or None")
HEADS = ({"num_heads": 3}, "num_heads is 3; it must be positive and divide the 16 output channels")
gates = st.sampled_from(["identity", "sigmoid", "tanh"])
heads = st.sampled_from([1, 2])
ratios = st.sampled_from([0.25, 0.5])
reductions = st.sampled_from([None, None, 1, 4])


def _mixing(config: PixelShift) -> st.SearchStrategy[PixelShift]:
    """The same, with a pooled query of low rank where it has one at all."""
    return (
        st.just(config) if config.pooled_query is False else st.builds(replace, st.just(config), reduction=reductions)
    )


CASES: dict[str, Case] = {
    "pixel_shift": Case(
        variants={
            "default": PixelShift(),
            "windows": PixelShift(gate="tanh", window=5, dilation=(1, 2), pooled_query=False, pooled_key=False),
            "mixing": PixelShift(reduction=4),
            "plain": PixelShift(
                gate="identity", pooled_query=False, pooled_key=False, query_norm=False, window_norm=False
            ),
        },
        configs=st.builds(
            PixelShift,
            attention_ratio=ratios,
            attention_channels=st.sampled_from([None, None, 3]),
            gate=gates,
            window=st.sampled_from([None, "conv", 3, 5]),
            dilation=st.sampled_from([None, 1, 2, (1, 2), (1, 3)]),
            pooled_query=st.booleans(),
            pooled_key=st.booleans(),
            query_norm=st.sampled_from([None, True, False]),
            window_norm=st.sampled_from([None, True, False]),
        ).flatmap(_mixing),
        reference=references.pixel_shift,
        refused=(
            RATIO,
            GATE,
            WINDOW,
            ({"window": "full"}, "window is 'full'; it must be a positive integer, one for each dimension, or 'conv'"),
            ({"attention_channels": 0}, "attention_channels is 0; it must be a positive integer"),
            ({"dilation": 0}, "dilation is 0; it must be a positive integer or several positive integers"),
            REDUCTION,
            ({"reduction": 4, "pooled_query": False}, "reduction is 4, but pooled_query is off; switch it on"),
            (
                {"pooled_key": False, "pooled_key_init": 2.0},
                "pooled_key_init is 2.0, but pooled_key is off; switch it on",
            ),
        ),
        window=lambda operator: geometry_of(operator.conv).union(
            [geometry_of(operator.attention.query), *map(geometry_of, operator.attention.windows)]
        ),
    ),
    "pixel_shift_dot": Case(
        variants={"default": PixelShiftDot(), "heads": PixelShiftDot(num_heads=2, window=(1, 3))},
        configs=st.builds(
            PixelShiftDot,
            attention_ratio=ratios,
            num_heads=heads,
            window=st.sampled_from([None, "conv", 3]),
            dilation=st.sampled_from([None, 1, 2]),
        ),
        reference=references.pixel_shift_dot,
        refused=(RATIO, WINDOW, HEADS, ({"dilation": 0}, "dilation is 0; it must be a positive integer")),
        window=lambda operator: geometry_of(operator.conv).union([operator.attention.shifts]),
        captured=("heads",),  # unrolled over its window: a graph of nine taps takes long to compile
    ),
    "linear": Case(
        variants={"default": Linear(), "heads": Linear(num_heads=2)},
        configs=st.builds(Linear, attention_ratio=ratios, num_heads=heads),
        reference=references.linear,
        refused=(RATIO, HEADS),
        window=lambda operator: geometry_of(operator.conv),
    ),
    "global": Case(
        variants={"default": Global(), "heads": Global(num_heads=2), "cosines": Global(qk_norm=True)},
        configs=st.builds(Global, attention_ratio=ratios, num_heads=heads, qk_norm=st.booleans()),
        reference=references.exact,
        refused=(RATIO, HEADS),
    ),
    "channel_gate": Case(
        variants={
            "default": ChannelGate(),
            "separable": ChannelGate(separable=True),
            "keys": ChannelGate(channel_keys=True),
            "mixing": ChannelGate(channel_keys=True, reduction=2),
        },
        configs=st.builds(
            ChannelGate, gate=gates, separable=st.booleans(), channel_keys=st.booleans(), reduction=reductions
        ),
        reference=references.channel_gate,
        refused=(GATE, REDUCTION),
        window=lambda operator: geometry_of(operator.conv),
        captured=("default", "separable"),
    ),
    "gated_depthwise": Case(
        variants={
            "default": GatedDepthwise(),
            "pooled": GatedDepthwise(gate="tanh", window=3, pooled_value=True),
            "ungated": GatedDepthwise(gate="one"),
        },
        configs=st.builds(
            GatedDepthwise,
            gate=st.sampled_from(["identity", "sigmoid", "tanh", "one"]),
            window=st.sampled_from([1, 2, 3, 5]),
            pooled_value=st.booleans(),
        ),
        reference=references.gated_depthwise,
        refused=(
            GATE,
            WINDOW,
            ({"pooled_value_init": 2.0}, "pooled_value_init is 2.0, but pooled_value is off; switch it on"),
        ),
        window=lambda operator: geometry_of(operator.conv).followed_by(geometry_of(operator.attention.window)),
    ),
}

#: (branch, variant) of all configurations that have a name.
VARIANTS = [(branch, variant) for branch, case in CASES.items() for variant in case.variants]
#: Those whose graphs are captured and whose processes are started.
CAPTURED = [(branch, variant) for branch, case in CASES.items() for variant in case.captured]
