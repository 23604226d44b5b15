"""Equalization changes no output, and int8 files run and say how far they are off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.core.networks import SmallNet, randomize
from xvolution import XVolution1d, XVolution2d, XVolutionConfig, convert, export, reparameterize
from xvolution.attention import PixelShift
from xvolution.deploy.equalize import equalize
from xvolution.deploy.quantize import QuantizationError, quantize, saturates


def unbalanced(layout: str, attention: PixelShift, operator: type = XVolution2d, **options: Any) -> nn.Module:
    """A deployed operator in fp64 whose channels of q and k differ by orders of magnitude."""
    torch.manual_seed(0)
    options |= {"attention": attention, "zero_init": False, "dtype": torch.float64}
    module = randomize(operator(8, 16, 3, padding=1, **options)).eval()
    with torch.no_grad():
        for convolution in (module.attention.query, module.attention.windows[0]):
            spread = torch.logspace(-3, 3, convolution.out_channels, dtype=torch.float64)
            convolution.weight.mul_(spread.reshape(-1, *(1,) * (convolution.weight.dim() - 1)))
    return reparameterize(module, layout=layout)


@pytest.mark.parametrize("gate", ["identity", "sigmoid", "tanh"])
@pytest.mark.parametrize(("layout", "groups"), [("single", 1), ("single", 2), ("split", 1), ("split", 2), ("parts", 1)])
@pytest.mark.parametrize("reduction", [None, 4])
def test_equalization_changes_nothing(layout: str, gate: str, groups: int, reduction: int | None) -> None:
    deployed = unbalanced(layout, PixelShift(gate=gate, reduction=reduction), groups=groups)
    x = torch.randn(4, 8, 9, 7, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in deployed.state_dict().items()}
    equal = equalize(deployed, [x])
    assert torch.equal(equal(x), deployed(x))
    assert all(torch.equal(before[name], tensor) for name, tensor in deployed.state_dict().items())
    assert any(not torch.equal(before[name], tensor) for name, tensor in equal.state_dict().items())


@pytest.mark.parametrize("layout", ["single", "split", "parts"])
def test_equalization_in_one_dimension_and_several_windows(layout: str) -> None:
    deployed = unbalanced(layout, PixelShift(dilation=(1, 2), gate="tanh"), XVolution1d)
    x = torch.randn(4, 8, 20, dtype=torch.float64)
    torch.testing.assert_close(equalize(deployed, [x])(x), deployed(x), rtol=1e-12, atol=1e-12)


def test_parts_of_the_single_convolution_get_one_range() -> None:
    deployed = unbalanced("single", PixelShift(gate="identity", pooled_key=False))
    x = torch.randn(8, 8, 9, 7, dtype=torch.float64)
    equal = equalize(deployed, [x])
    parts = equal.parts(x)
    for part in (parts.query + parts.query_shift, parts.window_sum):
        share = part.abs().amax((0, 2, 3)) / parts.convolution.abs().max()
        assert share.max() <= 1
        assert share.min() > 0.5
    assert deployed.parts(x).query.abs().max() > 100 * parts.convolution.abs().max()


def test_channels_of_the_split_layout_get_one_range() -> None:
    deployed = unbalanced("split", PixelShift())
    x = torch.randn(8, 8, 9, 7, dtype=torch.float64)
    window_sum = equalize(deployed, [x]).parts(x).window_sum.abs().amax((0, 2, 3))
    assert window_sum.max() < 4 * window_sum.min()


def test_norms_on_the_window_sum_are_left_alone() -> None:
    def group_norm(channels: int) -> nn.Module:
        return nn.GroupNorm(2, channels).double()

    options: dict[str, Any] = {"attention": PixelShift(window_norm=True), "norm_layer": group_norm}
    module = XVolution2d(8, 16, 3, padding=1, dtype=torch.float64, **options).eval()
    deployed, x = reparameterize(module), torch.randn(2, 8, 9, 7, dtype=torch.float64)
    equal = equalize(deployed, [x])
    assert all(torch.equal(a, b) for a, b in zip(deployed.parameters(), equal.parameters(), strict=True))


def test_equalization_needs_images() -> None:
    with pytest.raises(ValueError, match="calibration is empty"):
        equalize(unbalanced("single", PixelShift()), [])


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return randomize(convert(SmallNet(), XVolutionConfig(zero_init=False))).eval()


@pytest.fixture
def calibration() -> list[torch.Tensor]:
    return [torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def test_equalization_saves_what_one_scale_would_lose(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    deployed, calibration = unbalanced("split", PixelShift()).float(), [torch.randn(8, 8, 16, 16)]
    before = quantize(deployed, tmp_path / "before.onnx", calibration)
    after = quantize(equalize(deployed, calibration), tmp_path / "after.onnx", calibration)
    assert before.relative_error > 0.5
    assert after.relative_error < 0.15


@pytest.mark.parametrize("layout", ["single", "split", "parts"])
def test_quantized_networks_run_and_report(
    network: nn.Module, calibration: list[torch.Tensor], layout: str, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    report = quantize(reparameterize(network, layout=layout, fold_norms=True), tmp_path / "int8.onnx", calibration)
    assert report.path == tmp_path / "int8.onnx"
    assert report.calibration_images == 16
    assert 0 < report.relative_error < 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]
    graph = onnx.load(tmp_path / "int8.onnx").graph
    made_by = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions
    assert {made_by[name].op_type for node in convolutions for name in node.input[:2]} == {"DequantizeLinear"}


def test_a_file_is_quantized_with_its_metadata(
    network: nn.Module, calibration: list[torch.Tensor], tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    export(reparameterize(network), tmp_path / "fp32.onnx", calibration[0])
    described = onnx.load(tmp_path / "fp32.onnx")
    onnx.helper.set_model_props(described, {"about": "cats"})
    onnx.save(described, tmp_path / "fp32.onnx")
    quantize(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", calibration)
    session = runtime.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["about"] == "cats"
    (y,) = session.run(None, {session.get_inputs()[0].name: torch.randn(3, 3, 24, 20).numpy()})
    assert y.shape == (3, 5)


class Outputs(nn.Module):
    """A network that returns a map, a vector for each image and one number."""

    def __init__(self, container: type) -> None:
        super().__init__()
        self.conv, self.container = nn.Conv2d(3, 8, 3, padding=1), container

    def forward(self, x: torch.Tensor) -> Any:
        maps = self.conv(x).relu()
        outputs = {"maps": maps, "scores": maps.mean((2, 3)), "total": maps.mean()}
        return outputs if self.container is dict else self.container(outputs.values())


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
@pytest.mark.parametrize("container", [dict, tuple])
def test_outputs_of_any_rank_and_number_and_images_of_any_size(container: type, method: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    network = Outputs(container).eval()
    batches = [torch.randn(*shape) for shape in [(4, 3, 16, 16), (4, 3, 20, 24), (1, 3, 16, 16)]]
    report = quantize(network, tmp_path / "int8.onnx", batches, method=method)
    assert report.calibration_images == 9
    assert 0 < report.relative_error < 0.2
    assert 0 < report.max_difference < 1


def test_every_output_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    found = iter([[torch.tensor([3.0, 0.0]), torch.tensor(4.0)], [torch.tensor([3.0, 1.0]), torch.tensor(2.0)]])
    monkeypatch.setattr(
        "xvolution.deploy.quantize._run", lambda runtime, path, batches: [y.double() for y in next(found)]
    )
    report = quantize(Outputs(tuple).eval(), tmp_path / "int8.onnx", [torch.randn(2, 3, 16, 16)])
    assert report.max_difference == 2
    assert report.relative_error == pytest.approx(5**0.5 / 5)


def test_bad_input_is_refused_with_a_sentence(network: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    images = torch.randn(2, 3, 16, 16)
    with pytest.raises(
        ValueError,
        match=r"int8\.pt2 cannot be quantized: .* has no int8 files here; give a file that ends in \.onnx or \.xml",
    ):
        quantize(network, tmp_path / "int8.pt2", [images])
    with pytest.raises(ValueError, match=r"int8\.mnn cannot be quantized: MNN has no int8 files here"):
        quantize(network, tmp_path / "int8.mnn", [images])
    with pytest.raises(ValueError, match="at least one batch of images"):
        quantize(network, tmp_path / "int8.onnx", [])
    with pytest.raises(ValueError, match="method is 'magic'"):
        quantize(network, tmp_path / "int8.onnx", [images], method="magic")
    (tmp_path / "broken.onnx").write_text("no network")
    with pytest.raises(QuantizationError, match=r"cannot quantize broken\.onnx"):
        quantize(tmp_path / "broken.onnx", tmp_path / "int8.onnx", [images])
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize(("vnni", "asked", "largest"), [(True, None, 127), (False, None, 64), (True, True, 64)])
def test_weights_have_seven_bits_where_the_processor_saturates(
    network: nn.Module,
    calibration: list[torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    vnni: bool,
    asked: bool | None,
    largest: int,
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    deployed = reparameterize(network, fold_norms=True)
    quantize(deployed, tmp_path / "int8.onnx", calibration, reduce_range=asked)
    stored = onnx.load(tmp_path / "int8.onnx").graph.initializer
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in stored if tensor.data_type == onnx.TensorProto.INT8]
    found = max(int(abs(weight.astype("int32")).max()) for weight in weights if weight.ndim == 4)
    assert found == largest


def test_other_processors_do_not_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert not saturates()
