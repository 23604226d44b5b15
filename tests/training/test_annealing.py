"""Gates that are annealed to their means leave plain convolutions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.core.networks import SmallNet, randomize
from xvolution import XVolutionConfig, collapse, convert
from xvolution.attention import ChannelGate, PixelShift
from xvolution.numerics import GATES
from xvolution.training import InputError, TrainConfig, deploy, load_model, train
from xvolution.training.classification.annealing import Annealing

RUN: dict[str, Any] = {"epochs": 4, "anneal_to_conv": 3, "stages": [3], "limit_train_batches": 5}


@pytest.mark.parametrize("options", [{"operator": "pixel_shift"}, {"operator": "channel_gate"}], ids=str)
def test_a_run_ends_with_plain_convolutions(
    tiny: Callable[..., TrainConfig], tmp_path: Path, options: dict[str, Any]
) -> None:
    result = train(tiny(**RUN, **options, operator_options={"zero_init": False}))
    shares = [row["gates_annealed"] for row in result.history]
    assert shares == [0.0, pytest.approx(2 / 3), 1.0, 1.0]
    assert any(result.metrics is row for row in result.history[2:])  # the epochs whose network is what is asked for
    for path in (result.weights, result.checkpoint):
        model, _ = load_model(path)
        images = torch.randn(4, 3, 16, 16)
        static, report = collapse(model, [images])
        assert report.layers
        assert set(report.layers.values()) == {0.0}
        torch.testing.assert_close(static(images), model(images), rtol=1e-4, atol=1e-5)
    deploy(result.checkpoint, [tmp_path / "plain.safetensors"], layout="conv")
    plain, metadata = load_model(tmp_path / "plain.safetensors")
    assert set(metadata.layouts.values()) == {"conv"}
    torch.testing.assert_close(plain(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_run_that_is_stopped_goes_on_to_the_same_end(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    whole = train(tiny(**RUN, output=str(tmp_path / "whole")))

    class Stopped(Exception):
        pass

    for stop in (0.25, 0.95):  # while the gates move, in the first of the epochs, and when they have arrived
        folder = str(tmp_path / f"cut{stop}")
        original = Annealing.move_to

        def interrupted(self: Annealing, progress: float, stop: float = stop, original: Any = original) -> None:
            if progress > stop:
                raise Stopped
            original(self, progress)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Annealing, "move_to", interrupted)
            with pytest.raises(Stopped):
                train(tiny(**RUN, output=folder, checkpoint_every=1))
        resumed = train(tiny(**RUN, output=folder, resume="last"))
        assert [row["train_loss"] for row in resumed.history] == [row["train_loss"] for row in whole.history]


@pytest.mark.parametrize("attention", [PixelShift(gate="tanh"), ChannelGate(channel_keys=True)], ids=str)
def test_gates_go_to_their_means_and_the_network_changes_with_them_alone(attention: Any) -> None:
    torch.manual_seed(0)
    model = randomize(
        convert(SmallNet(), XVolutionConfig(attention=attention, zero_init=False), names=("layer1.conv1",))
    )
    annealing, x = Annealing(model), torch.randn(8, 3, 8, 8)
    model.eval()
    before, branch = model(x), model.layer1.conv1.attention
    said: dict[str, list[torch.Tensor]] = {name: [] for name in branch.gates()}
    handles = [
        branch.get_submodule(name).register_forward_hook(lambda _, __, y, kept=said[name]: kept.append(y))
        for name in said
    ]
    annealing.begin(model)
    torch.testing.assert_close(model(x), before)  # at the share 0
    for name in said:
        branch.get_submodule(name).train()
    model(x)  # the means are of this batch alone
    seen = {name: kept[-1].detach() for name, kept in said.items()}
    model.eval()
    for handle in handles:
        handle.remove()
    annealing.move_to(0.25)
    assert annealing.share == pytest.approx(0.5)
    halfway = model(x)
    annealing.move_to(0.9)
    assert annealing.settled
    assert (model(x) - before).abs().max() > (halfway - before).abs().max() > 1e-5
    torch.testing.assert_close(annealing.taught(x), before)
    for name, logits in seen.items():
        mean = GATES[attention.gate].apply(logits).transpose(0, 1).flatten(1).mean(1)
        torch.testing.assert_close(annealing.means[f"layer1.conv1.{name}"], mean)
        now: list[torch.Tensor] = []
        branch.get_submodule(name).register_forward_hook(lambda _, __, y, now=now: now.append(y))
        model(x)
        gate = GATES[attention.gate].apply(now[0])
        torch.testing.assert_close(gate, mean[:, None, None].expand_as(gate), rtol=1e-4, atol=1e-5)
    fixed = [name for name, parameter in branch.named_parameters() if not parameter.requires_grad]
    assert any(name.startswith("query") for name in fixed)
    assert not any(name.startswith("value") for name in fixed)


def test_what_cannot_be_annealed_is_a_sentence(tiny: Callable[..., TrainConfig]) -> None:
    with pytest.raises(InputError, match=r"and layer3.0.conv1 has LinearAttention; use --operator pixel_shift"):
        train(tiny(anneal_to_conv=1, operator="linear"))
    with pytest.raises(InputError, match="needs attention with a gate, which the network does not have"):
        train(tiny(anneal_to_conv=1, operator="conv"))
    with pytest.raises(InputError, match=r"--anneal-to-conv is 3; it must be from 0 to epochs \(2\)"):
        tiny(anneal_to_conv=3)
    with pytest.raises(InputError, match="--anneal-to-conv is 1; it must be left out with --ema-decay or --compile"):
        tiny(anneal_to_conv=1, ema_decay=0.9)
