"""A branch whose formula somebody changed stays attention, and what is deployed computes the changed formula."""

import copy
import types

import pytest
import torch

from tests.core.cases import VARIANTS
from tests.core.execution import TRAINING, network, operator, relative_error
from xvolution import dynamic_kernel, layouts_of, reparameterize
from xvolution.operator import fold


def changed_class(branch):
    """The branch as an instance of a subclass whose forward computes something else."""

    class Changed(type(branch)):
        def forward(self, *inputs):
            return super().forward(*inputs).tanh() + 1

    branch.__class__ = Changed


def patched(branch):
    """An instance with a forward of its own."""
    forward = type(branch).forward
    branch.forward = types.MethodType(lambda self, *inputs: forward(self, *inputs).sin() + 0.1, branch)


@pytest.mark.parametrize("change", [changed_class, patched])
@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_a_changed_branch_stays_attention_and_exact(branch, variant, change):
    trained = operator(branch, variant, TRAINING).double()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    before = trained(x)
    change(trained.attention)
    expected = trained(x)
    assert relative_error(expected, before) > 1e-3
    assert fold(trained).layouts == ("split",)
    for layout in ("split", "auto"):
        deployed = reparameterize(trained, x, layout=layout)
        assert relative_error(expected, deployed(x)) <= 1e-12
        assert relative_error(expected[0], deployed(x[0])) <= 1e-12
    with pytest.raises(ValueError, match="not a dynamic convolution over a window"):
        dynamic_kernel(trained, x, (0, 0))


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_a_network_with_one_changed_branch_deploys_the_others(branch, variant):
    model, x = network(branch, variant, TRAINING).double(), torch.randn(2, 3, 9, 8, dtype=torch.float64)
    layouts = fold(model.layer1.conv2).layouts
    patched(model.layer1.conv1.attention)
    deployed = reparameterize(model, x, rtol=1e-11)
    assert relative_error(model(x), deployed(x)) <= 1e-11
    assert layouts_of(deployed)["layer1.conv1"] == "split"
    assert all(layout in layouts for layout in layouts_of(deployed).values())
    copied = copy.deepcopy(deployed)
    assert torch.equal(copied(x), deployed(x))


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_a_subclass_that_changes_nothing_deploys_as_its_parent(branch, variant):
    trained = operator(branch, variant, TRAINING).double()
    layouts = fold(trained).layouts
    trained.attention.__class__ = type("Renamed", (type(trained.attention),), {"__doc__": "The same by another name."})
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    assert fold(trained).layouts == layouts
    for layout in layouts:
        assert relative_error(trained(x), reparameterize(trained, layout=layout)(x)) <= 1e-12
