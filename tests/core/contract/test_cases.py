"""Every branch has a case, and a configuration that files hold and Python checks."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.cases import CASES, VARIANTS
from tests.core.execution import build
from xvolution import XVolution2d
from xvolution.attention import ATTENTION, attention_config


def test_every_branch_has_a_case():
    of_the_package = {name for name, kind in ATTENTION.items() if kind.__module__.startswith("xvolution.")}
    assert of_the_package == set(CASES)
    assert all(ATTENTION[name] is case.kind for name, case in CASES.items())
    assert all(case.variants["default"] == case.kind() for case in CASES.values())
    assert all(set(case.captured) <= set(case.variants) for case in CASES.values())


@pytest.mark.parametrize("branch", CASES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_configurations_survive_json(branch, data):
    config = data.draw(CASES[branch].configs)
    values = json.loads(json.dumps(config.to_dict()))
    assert values["type"] == branch
    assert attention_config(values) == config
    assert attention_config(config) is config


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_configurations_are_frozen_values(branch, variant):
    config = CASES[branch].variants[variant]
    assert attention_config(json.loads(json.dumps(config.to_dict()))) == config
    field = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, getattr(config, field))
    assert hash(config) == hash(dataclasses.replace(config))


@pytest.mark.parametrize("branch", CASES)
def test_a_name_stands_for_the_defaults(branch):
    assert attention_config(branch) == CASES[branch].variants["default"]
    assert XVolution2d(8, 16, 3, attention=branch).attention.config == CASES[branch].variants["default"]


@pytest.mark.parametrize("branch", CASES)
def test_foreign_options_are_refused(branch):
    kind, options = CASES[branch].kind, [field.name for field in dataclasses.fields(CASES[branch].kind)]
    foreign = {field.name for case in CASES.values() for field in dataclasses.fields(case.kind)} - set(options)
    for option in foreign:
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
            kind(**{option: 1})
        with pytest.raises(
            ValueError, match=f"'{branch}' does not take {option}; its options are {', '.join(options)}$"
        ):
            attention_config({"type": branch, option: 1})
        if option != "dilation":  # the convolution's own
            with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
                XVolution2d(8, 16, 3, **{option: 1})


@pytest.mark.parametrize(
    ("branch", "options", "sentence"),
    [(branch, *refused) for branch, case in CASES.items() for refused in case.refused],
)
def test_values_that_are_not_allowed_are_refused_with_a_sentence(branch, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        XVolution2d(8, 16, 3, attention=attention_config({"type": branch, **options}))


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match="attention is 'softmax'; allowed are") as refusal:
        XVolution2d(8, 16, 3, attention="softmax")
    assert all(repr(branch) in str(refusal.value) for branch in CASES)
    with pytest.raises(ValueError, match="attention is None; allowed are"):
        attention_config({"window": 5})


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_the_options_are_shown(branch, variant):
    config = CASES[branch].variants[variant]
    shown = repr(build(branch, variant))
    for field in dataclasses.fields(config):
        assert f"{field.name}={getattr(config, field.name)}" in shown
