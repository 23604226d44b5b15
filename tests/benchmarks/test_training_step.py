"""The training step is measured in the form that it is said to be in."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.training_step import Case, measure, training_as


class Called(TorchDispatchMode):
    """Names of the operators that were called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def operator_case(**settings):
    given = {"what": "resnet-4", "stages": (), "batch": 2, "image_size": 0, "precision": "fp32", "mode": "eager"}
    return Case(**given | {"channels_last": False, "device": "cpu"} | settings)


NETWORK = {"what": "test_resnet", "stages": (3,), "image_size": 64}


def called(case, form):
    step = case.step(form)
    with Called() as operators:
        step()
    return any("add_attention" in name for name in operators.names)


@pytest.mark.parametrize("settings", [{}, NETWORK, {"precision": "bf16", "channels_last": True}])
def test_each_form_is_what_its_name_says(settings):
    case = operator_case(**settings)
    assert {form: called(case, form) for form in ("plain", "modules", "fused", "default")} == {
        "plain": False,
        "modules": False,
        "fused": True,
        "default": False,  # two small images: the library takes the modules
    }


def test_an_unknown_form_is_refused():
    with pytest.raises(KeyError, match="quick"), training_as("quick"):
        pass


def test_forms_have_times_ratios_and_memory():
    torch.set_num_threads(1)
    figures = measure(operator_case(), ("plain", "fused"), rounds=1, memory=True)
    assert set(figures) == {"plain", "fused"}
    for form, other in (("plain", "fused"), ("fused", "plain")):
        assert figures[form]["median_ms"] > 0
        assert figures[form]["ratio"].keys() == {other}
        assert figures[form]["peak_bytes"] > figures[form]["above_start_bytes"] > 0
