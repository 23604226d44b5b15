"""What files of format 1 say of a conversion builds the operator that it built then, with the same parameters."""

import json

import pytest
from torch import nn

from xvolution.attention import GatedDepthwise, PixelShift
from xvolution.conversion.config import Placement
from xvolution.conversion.register import OPERATORS, conversion_from_dict
from xvolution.conversion.upgrade import OPERATOR_NAMES, upgrade_conversion

#: A flat configuration of format 1 as it was written: every field with its default.
FLAT = {
    "stages": None,
    "kernel_sizes": None,
    "names": None,
    "kernel_size": None,
    "num_conv_branches": 1,
    "attention": "pssa",
    "attention_ratio": 0.25,
    "similarity": "hadamard",
    "heads": 1,
    "gate": None,
    "window": None,
    "shift_distance": None,
    "separable": False,
    "channel_keys": False,
    "query_key_norm": False,
    "query_context": None,
    "global_term": None,
    "global_init": None,
    "query_norm": None,
    "window_norm": None,
    "norm_layer": "BatchNorm2d",
    "zero_init": True,
}
#: Of the attention of format 1 on a 3x3 convolution of 8 -> 16 channels, with one attention channel to four.
QUERY = "query.weight=4x8x1x1 query.bias=4"
NORMS = "query_norm.weight=4 query_norm.bias=4 window_norm.weight=4 window_norm.bias=4"
KEY, CONTEXT, WINDOW = "key.weight=4x8x1x1", "context.weight=4x8x1x1", "windows.0.weight=4x1x3x3"
MEAN, VALUE = "mean_weight=4", "value.weight=16x4x1x1"
USUAL = f"{MEAN} {QUERY} {CONTEXT} {KEY} {WINDOW} {NORMS} {VALUE}"
ALL_PIXELS = "query.weight=4x8x1x1 query.bias=4 key.weight=4x8x1x1 key.bias=4 value.weight=16x8x1x1 value.bias=16"
DOT = f"window_weight=1x1x3x3 {QUERY} {KEY} value.weight=16x8x1x1"

#: Groups of the convolution, what was not at its default, and parameters beside the first convolution and the last norm.
XVOLUTIONS = [
    (1, {}, USUAL),
    (1, {"gate": "tanh"}, USUAL),
    (1, {"shift_distance": 2}, USUAL),
    (1, {"global_init": 0.5}, USUAL),
    (1, {"global_term": True, "global_init": 0.0}, USUAL),
    (1, {"query_norm": True, "window_norm": True, "query_context": True}, USUAL),
    (1, {"global_term": False}, f"{QUERY} {CONTEXT} {KEY} {WINDOW} {NORMS} {VALUE}"),
    (1, {"query_context": False}, f"{MEAN} {QUERY} {KEY} {WINDOW} {NORMS} {VALUE}"),
    (1, {"query_norm": False, "window_norm": False}, f"{MEAN} {QUERY} {CONTEXT} {KEY} {WINDOW} {VALUE}"),
    (1, {"norm_layer": None}, f"{MEAN} {QUERY} {CONTEXT} {KEY} {WINDOW} {VALUE}"),
    (1, {"norm_layer": None, "query_norm": True}, f"{MEAN} {QUERY} {CONTEXT} {KEY} {WINDOW} {VALUE}"),
    (
        1,
        {"window": 5, "shift_distance": [1, 2]},
        f"{MEAN} {QUERY} {CONTEXT} {KEY} windows.0.weight=4x1x5x5 windows.1.weight=4x1x5x5 {NORMS} {VALUE}",
    ),
    (
        2,
        {"attention_ratio": 0.5, "query_norm": False},
        "mean_weight=8 query.weight=8x4x1x1 query.bias=8 context.weight=8x4x1x1 key.weight=8x4x1x1 "
        "windows.0.weight=8x1x3x3 window_norm.weight=8 window_norm.bias=8 value.weight=16x4x1x1",
    ),
    (1, {"similarity": "dot", "shift_distance": [2]}, DOT),
    (1, {"similarity": "dot", "shift_distance": 2, "gate": "identity"}, DOT),
    (
        2,
        {"similarity": "dot", "heads": 2, "window": 5},
        "window_weight=4x1x5x5 query.weight=4x4x1x1 query.bias=4 key.weight=4x4x1x1 value.weight=16x4x1x1",
    ),
    (1, {"attention": "linear", "gate": "identity"}, ALL_PIXELS),
    (
        2,
        {"attention": "linear", "heads": 2},
        "query.weight=4x4x1x1 query.bias=4 key.weight=4x4x1x1 key.bias=4 value.weight=16x4x1x1 value.bias=16",
    ),
    (1, {"attention": "global"}, ALL_PIXELS),
    (1, {"attention": "global", "heads": 2, "query_key_norm": True}, f"temperature=2 {ALL_PIXELS}"),
    (2, {"attention": "image"}, "query.weight=16x4x1x1 query.bias=16 value.weight=16x4x3x3"),
    (
        1,
        {"attention": "image", "gate": "identity", "separable": True, "channel_keys": True},
        "query.weight=16x8x1x1 query.bias=16 key.weight=8x8x1x1 key.bias=8 value.weight=16x8x1x1 window.weight=16x1x3x3",
    ),
    (2, {"attention": "shared"}, "query.weight=16x4x1x1 query.bias=16 window.weight=16x1x5x5"),
    (
        1,
        {"attention": "shared", "global_term": False},
        "query.weight=16x8x1x1 query.bias=16 window.weight=16x1x5x5",
    ),
    (
        1,
        {"attention": "shared", "gate": "one", "window": 3, "global_term": True, "global_init": 0.5},
        "mean_weight=16 window.weight=16x1x3x3",
    ),
    (
        1,
        {"attention": None, "num_conv_branches": 2},
        "parallel.0.conv.weight=16x8x3x3 parallel.0.conv.bias=16 parallel.0.norm.weight=16 parallel.0.norm.bias=16",
    ),
]
TWICE = "norms.0.weight=16 norms.0.bias=16 norms.1.weight=16 norms.1.bias=16"


def both(branch):
    """The parameters of two such branches."""
    return " ".join(f"attentions.{index}.{entry}" for index in (0, 1) for entry in branch.split())


#: Name and options of an operator in format 1, and its parameters on the same convolution.
OTHERS = [
    ("conv", {}, "weight=16x8x3x3 bias=16"),
    (
        "sasa",
        {"heads": 2},
        "row_embedding=2x4x3 column_embedding=2x4x3 bias=16 query.weight=16x8x1x1 key.weight=16x8x1x1 value.weight=16x8x1x1",
    ),
    (
        "global",
        {"heads": 4, "query_key_norm": True, "attention_ratio": 0.5},
        "temperature=4 query.weight=8x8x1x1 query.bias=8 key.weight=8x8x1x1 key.bias=8 value.weight=16x8x1x1 value.bias=16",
    ),
    (
        "involution",
        {"group_channels": 8},
        "project.weight=16x8x1x1 project.bias=16 reduce.weight=4x16x1x1 norm.weight=4 norm.bias=4 span.weight=18x4x1x1 "
        "span.bias=18",
    ),
    (
        "acmix",
        {"heads": 2, "window": 5},
        "alpha=1 beta=1 project.weight=48x8x1x1 project.bias=48 position.weight=8x2x1x1 position.bias=8 mix.weight=9x6 "
        "shift.weight=16x9x3x3",
    ),
    (
        "lesa",
        {"heads": 2, "map_size": 7},
        "unary.0.weight=16x4x3x3 unary.1.weight=16x16x1x1 unary.2.weight=16 unary.2.bias=16 binary.row_embedding=4x13 "
        "binary.column_embedding=4x13 binary.project.weight=32x8x1x1 binary.project_norm.weight=32 "
        "binary.project_norm.bias=32 binary.content_norm.weight=2 binary.content_norm.bias=2 binary.norm.weight=16 "
        "binary.norm.bias=16 binary.position_norm.weight=2 binary.position_norm.bias=2 fusion.1.weight=16x32x1x1 "
        "fusion.2.weight=16 fusion.2.bias=16 fusion.4.weight=16x16x1x1 fusion.5.weight=16 fusion.5.bias=16",
    ),
    (
        "mobilevit",
        {"heads": 2, "dim": 8, "depth": 1},
        "local.0.weight=16x8x3x3 local.1.weight=16 local.1.bias=16 reduce.weight=8x16x1x1 layers.0.attention_norm.weight=8 "
        "layers.0.attention_norm.bias=8 layers.0.qkv.weight=24x8 layers.0.qkv.bias=24 layers.0.out.weight=8x8 "
        "layers.0.out.bias=8 layers.0.mlp_norm.weight=8 layers.0.mlp_norm.bias=8 layers.0.mlp.0.weight=16x8 "
        "layers.0.mlp.0.bias=16 layers.0.mlp.2.weight=8x16 layers.0.mlp.2.bias=8 norm.weight=8 norm.bias=8 "
        "project.0.weight=16x8x1x1 project.1.weight=16 project.1.bias=16 fuse.0.weight=16x24x3x3 fuse.1.weight=16 "
        "fuse.1.bias=16",
    ),
    ("attention-attention", {}, f"{both(USUAL)} {TWICE}"),
    ("attention-attention", {"similarity": "dot"}, f"{both(DOT)} {TWICE}"),
    (
        "conv-context",
        {"ratio": 0.25},
        "conv.weight=16x8x3x3 conv.bias=16 conv_norm.weight=16 conv_norm.bias=16 context.0.weight=4x8x1x1 "
        "context.0.bias=4 context.2.weight=16x4x1x1 context_norm.weight=16 context_norm.bias=16",
    ),
    (
        "hpconv",
        {"levels": 2, "hierarchical": False},
        "input_convs.0.weight=8x8x3x3 input_convs.0.bias=8 input_convs.1.weight=8x2x5x5 input_convs.1.bias=8",
    ),
]


def upgraded(values):
    """The conversion of a dict of format 1, through JSON as files have it."""
    return conversion_from_dict(json.loads(json.dumps(upgrade_conversion(json.loads(json.dumps(values))))))


def built(values, groups=1):
    return upgraded(values).operator.replacement(nn.Conv2d(8, 16, 3, padding=1, groups=groups), None)


def shapes(module):
    return {name: "x".join(map(str, parameter.shape)) for name, parameter in module.named_parameters()}


def table(text):
    return dict(entry.split("=") for entry in text.split())


@pytest.mark.parametrize(("groups", "given", "expected"), XVOLUTIONS)
@pytest.mark.parametrize("whole", [True, False], ids=["written whole", "only what was given"])
def test_x_volutions(groups, given, expected, whole):
    operator = built({**FLAT, **given} if whole else given, groups)
    found = {
        name.removeprefix("attention."): shape
        for name, shape in shapes(operator).items()
        if not name.startswith(("conv.", "attention_norm."))
    }
    assert found == table(expected)
    has_norm = given.get("attention", "pssa") is not None and given.get("norm_layer", "BatchNorm2d") is not None
    assert isinstance(operator.attention_norm, nn.BatchNorm2d) == has_norm


@pytest.mark.parametrize(("name", "options", "expected"), OTHERS)
def test_other_operators(name, options, expected):
    assert shapes(built({"operator": name, "options": options, "kernel_size": None})) == table(expected)


def test_every_operator_of_format_1_is_in_the_table():
    since = {"se", "eca", "gc", "ca", "odconv"}
    assert {OPERATOR_NAMES.get(name, name) for name, *_ in OTHERS} == set(OPERATORS) - since


def test_what_was_left_open_takes_the_defaults_that_the_branch_had():
    had = {"attention_ratio": 0.25, "pooled_query": True}
    assert upgraded(FLAT).operator.attention == PixelShift(window="conv", **had)
    assert upgraded({**FLAT, "attention": "shared"}).operator.attention == GatedDepthwise()
    given = {"gate": "tanh", "query_context": False, "global_init": 0.5, "query_norm": False, "window_norm": True}
    assert upgraded({**FLAT, **given, "window": 5, "shift_distance": [1, 2]}).operator.attention == PixelShift(
        attention_ratio=0.25,
        gate="tanh",
        window=5,
        dilation=(1, 2),
        pooled_query=False,
        pooled_key_init=0.5,
        query_norm=False,
        window_norm=True,
    )


def test_where_and_what_is_around_the_branch_are_kept():
    places = {"stages": [2, 3], "kernel_sizes": [3], "names": ["layer*"]}
    own = {"num_conv_branches": 2, "norm_layer": "InstanceNorm2d", "zero_init": False, "kernel_size": 5}
    conversion = upgraded({**FLAT, **places, **own})
    assert conversion.where == Placement(stages=(2, 3), kernel_sizes=(3,), names=("layer*",), at_projections=False)
    assert {name: getattr(conversion.operator, name) for name in own} == own
    other = upgraded({**places, "operator": "conv", "options": {}, "kernel_size": 5})
    assert other.where == conversion.where
    assert other.operator.kernel_size == 5
    assert upgrade_conversion(None) is None
