"""1x1 convolutions as matrix products: the same numbers, gradients and memory format."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from xvolution import XVolution2d, reparameterize
from xvolution.attention.pointwise import project, project_onto
from xvolution.convolutions import CONVOLUTIONS

SHAPES = {1: (3, 6, 5), 2: (2, 6, 5, 4), 3: (2, 6, 3, 4, 2)}
Layout = Callable[[Tensor], Tensor]


def channels_innermost(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_innermost])
def test_projection_is_the_convolution(dims: int, bias: bool, layout: Layout) -> None:
    conv = CONVOLUTIONS[dims](6, 8, 1, bias=bias, dtype=torch.float64)
    x = layout(torch.randn(SHAPES[dims], dtype=torch.float64)).requires_grad_()
    first, second = project(conv, x, parts=2)
    expected = conv(x)
    torch.testing.assert_close(torch.cat([first, second], 1), expected, rtol=1e-13, atol=1e-13)
    weight = torch.randn_like(expected)
    parameters = [x, *conv.parameters()]
    actual = torch.autograd.grad((torch.cat([first, second], 1) * weight).sum(), parameters)
    torch.testing.assert_close(
        actual, torch.autograd.grad((expected * weight).sum(), parameters), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_innermost])
def test_projection_onto_a_map_adds_the_convolution(dims: int, layout: Layout) -> None:
    conv = CONVOLUTIONS[dims](6, 8, 1, bias=False, dtype=torch.float64)
    x = layout(torch.randn(SHAPES[dims], dtype=torch.float64))
    larger = torch.randn(SHAPES[dims][0], 11, *SHAPES[dims][2:], dtype=torch.float64)
    for y in (larger[:, 2:10], layout(larger[:, 2:10])):
        before = y.clone()
        actual = project_onto(y, conv, x)
        torch.testing.assert_close(actual, y + conv(x), rtol=1e-13, atol=1e-13)
        assert torch.equal(y, before)
        assert actual.stride() == layout(actual).stride()


def test_a_hooked_convolution_is_called() -> None:
    operator = XVolution2d(8, 8, 3, padding=1).eval()
    deployed = reparameterize(operator, layout="split")
    called: list[str] = []
    for name in ("query_key", "value"):
        deployed.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    deployed(torch.randn(1, 8, 5, 5))
    assert called == ["query_key", "value"]


@pytest.mark.parametrize("layout", ["split", "single"])
def test_a_captured_graph_keeps_its_convolutions(layout: str) -> None:
    deployed = reparameterize(XVolution2d(8, 8, 3, padding=1).eval(), layout=layout)
    graph = torch.export.export(deployed, (torch.randn(2, 8, 5, 5),)).graph
    called = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert any("conv2d" in name for name in called)
    assert not any("mm" in name or "linear" in name for name in called)
