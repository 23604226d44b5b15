"""What is written runs elsewhere and computes the same, at any batch and image size."""

import pytest
import torch
from torch import nn

from tests.core.cases import CASES, VARIANTS
from tests.core.networks import SmallNet, randomize
from xvolution import ExportError, XVolution2d, XVolutionConfig, convert, export, reparameterize
from xvolution.attention import ChannelGate, GatedDepthwise
from xvolution.deploy.runtimes import base
from xvolution.deploy.runtimes.torch_export import LoadedProgram
from xvolution.operator import fold

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def deployed_network(attention=None):
    torch.manual_seed(0)
    config = None if attention is None else XVolutionConfig(attention=attention)
    return reparameterize(randomize(convert(SmallNet(), config, stages=(2,))).eval())


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_every_branch_exports_with_open_batch_and_size(tmp_path, branch, variant, ending):
    report = export(
        deployed_network(CASES[branch].variants[variant]), tmp_path / f"model.{ending}", torch.randn(1, 3, 16, 16)
    )
    assert report.dynamic == "batch and image size"
    assert report.relative_error <= 1e-4
    assert [file.name for file in tmp_path.iterdir()] == [f"model.{ending}"]


@pytest.mark.parametrize("layout", ["single", "split"])
def test_openvino(tmp_path, layout):
    pytest.importorskip("openvino")
    layer = randomize(XVolution2d(3, 8, 3, 2, "valid", padding_mode="reflect", groups=1, zero_init=False)).eval()
    report = export(reparameterize(layer, layout=layout), tmp_path / "model.xml", torch.randn(2, 3, 16, 16))
    assert report.relative_error <= 1e-4
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.xml"]


@pytest.mark.parametrize(
    "arguments",
    [
        (8, 16, 2, 1, "same"),
        (8, 16, 4, 2, (1, 2), 1, 2),
        (8, 8, 3, 1, 1, 1, 8),
        (8, 16, 3, 1, 2, 2, 1, True, "circular"),
    ],
)
def test_geometries_export_to_onnx(tmp_path, arguments):
    layer = randomize(XVolution2d(*arguments, zero_init=False)).eval()
    for layout in ("single", "split"):
        report = export(reparameterize(layer, layout=layout), tmp_path / "model.onnx", torch.randn(2, 8, 12, 12))
        assert report.relative_error <= 1e-4


def test_the_graph_holds_convolutions_multiplications_and_additions(tmp_path):
    onnx = pytest.importorskip("onnx")
    layer = randomize(XVolution2d(8, 8, 3, padding=1, zero_init=False)).eval()
    export(reparameterize(layer, layout="single"), tmp_path / "model.onnx", torch.randn(1, 8, 8, 8))
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert operators <= {"Conv", "Mul", "Add", "Split", "Constant", "Sigmoid", "ReduceMean"}


def test_other_sizes_are_tried_with_the_values_of_the_example(tmp_path):
    seen = []

    class OfUnitRange(nn.Module):
        """Computes nothing finite outside of 0 to 1, where its images lie."""

        def forward(self, x):
            if not torch.compiler.is_compiling():
                seen.append(x)
            return (x * (1 - x)).sqrt()

    images = 0.1 + 0.8 * torch.rand(1, 3, 8, 9)
    report = export(OfUnitRange().eval(), tmp_path / "model.pt2", images)
    assert report.dynamic == "batch and image size"
    larger = next(x for x in seen if x.shape == (2, 3, 40, 41))
    assert set(larger.flatten().tolist()) == set(images.flatten().tolist())
    assert not torch.equal(larger[0], larger[1])
    assert torch.equal(larger[0, :, :8, :9], images[0])


def test_a_network_of_one_size_keeps_the_batch_open(tmp_path):
    class OneSize(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.head = nn.Linear(4 * 8 * 8, 2)

        def forward(self, x):
            return self.head(self.conv(x).flatten(1))

    report = export(OneSize().eval(), tmp_path / "model.pt2", torch.randn(2, 3, 8, 8))
    assert report.dynamic == "batch"


def test_nothing_stays_when_the_file_computes_something_else(tmp_path, monkeypatch):
    target = tmp_path / "model.pt2"
    target.write_bytes(b"an older file")
    monkeypatch.setattr(LoadedProgram, "_run", lambda self, inputs: [torch.zeros(inputs[0].shape[0], 5)])
    with pytest.raises(ExportError, match="does not compute the same as the model"):
        export(deployed_network(), target, torch.randn(2, 3, 16, 16))
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    assert target.read_bytes() == b"an older file"


@pytest.mark.parametrize(
    ("name", "inputs", "error", "sentence"),
    [
        (
            "model.h5",
            torch.zeros(1, 3, 8, 8),
            ValueError,
            "must end in .mlpackage, .mnn, .ncnn.param, .onnx, .pt2, .pte, .tensorrt.onnx, .tflite, .xml",
        ),
        ("model.onnx", {"x": torch.zeros(1, 3, 8, 8)}, ValueError, "a tensor or a tuple of tensors"),
        ("model.onnx", (), ValueError, "a tensor or a tuple of tensors"),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence(tmp_path, name, inputs, error, sentence):
    with pytest.raises(error, match=sentence):
        export(deployed_network(), tmp_path / name, inputs)
    assert not list(tmp_path.iterdir())


def test_train_mode_and_missing_packages_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ExportError, match=r"call model\.eval"):
        export(SmallNet(), tmp_path / "model.onnx", torch.zeros(1, 3, 8, 8))
    monkeypatch.setattr(base, "find_spec", lambda package: None)
    with pytest.raises(ExportError, match=r"needs onnx, onnxscript, onnxruntime; install xvolution\[export\]"):
        export(SmallNet().eval(), tmp_path / "model.onnx", torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("attention", "fixed"),
    [
        (ChannelGate(), 1),
        (ChannelGate(separable=True), 1),
        (ChannelGate(channel_keys=True), 1),
        (GatedDepthwise(), 2),
    ],
)
def test_a_kernel_for_each_image_is_one_convolution_for_a_fixed_batch(tmp_path, attention, fixed):
    onnx = pytest.importorskip("onnx")
    layer = XVolution2d(8, 8, 3, padding=1, zero_init=False, attention=attention)
    layer = randomize(layer).eval()
    layer = reparameterize(layer, layout="single")
    for images, dynamic, convolutions in ((1, False, fixed), (3, False, fixed), (1, True, 2)):
        report = export(layer, tmp_path / "model.onnx", torch.randn(images, 8, 9, 9), dynamic=dynamic)
        assert report.relative_error <= 1e-5
        graph = onnx.load(tmp_path / "model.onnx").graph
        spatial = [
            node
            for node in graph.node
            if node.op_type == "Conv"
            and [1, 1] not in [list(a.ints) for a in node.attribute if a.name == "kernel_shape"]
        ]
        assert len(spatial) == convolutions


def small_network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval().to(dtype)


@pytest.mark.parametrize(
    ("ending", "dtype"),
    [
        ("onnx", torch.float16),
        ("xml", torch.float16),
        ("xml", torch.float64),
        ("pt2", torch.float16),
        ("pt2", torch.bfloat16),
        ("pt2", torch.float64),
    ],
)
def test_what_rounding_explains_in_a_dtype_is_allowed(tmp_path, ending, dtype):
    if ending == "xml":
        pytest.importorskip("openvino")
    report = export(small_network(dtype), tmp_path / f"model.{ending}", torch.randn(2, 3, 16, 16, dtype=dtype))
    assert report.dynamic == "batch and image size"


@pytest.mark.parametrize("branch", CASES)
def test_every_branch_exports_in_half_precision(tmp_path, branch):
    torch.manual_seed(0)
    layer = randomize(XVolution2d(4, 8, 3, padding=1, attention=branch, zero_init=False)).eval().half()
    x = torch.randn(2, 4, 12, 12).half()
    for layout in fold(layer).layouts:
        report = export(reparameterize(layer, layout=layout), tmp_path / "model.onnx", x)
        assert report.dynamic == "batch and image size"
        assert report.relative_error < 1e-2


@pytest.mark.parametrize("scale", [1e-3, 1e-8])
def test_half_precision_allows_rounding_and_no_more(tmp_path, monkeypatch, scale):
    run = LoadedProgram._run
    monkeypatch.setattr(LoadedProgram, "_run", lambda self, inputs: [y * (1 + 30 * scale) for y in run(self, inputs)])
    dtype = torch.float16 if scale == 1e-3 else torch.float64
    with pytest.raises(ExportError, match="does not compute the same as the model"):
        export(small_network(dtype), tmp_path / "model.pt2", torch.randn(2, 3, 16, 16, dtype=dtype), atol=0)


@pytest.mark.parametrize("ending", ["onnx", "xml"])
def test_a_dtype_that_the_runtime_lacks_is_refused_with_those_it_has(tmp_path, ending):
    if ending == "xml":
        pytest.importorskip("openvino")
    model, x = small_network(torch.bfloat16), torch.randn(2, 3, 16, 16, dtype=torch.bfloat16)
    with pytest.raises(
        ExportError, match=r"cannot run bfloat16, .*; allowed are float16, float32, float64: .*float\(\)"
    ):
        export(model, tmp_path / f"model.{ending}", x)
    assert not list(tmp_path.iterdir())


def test_an_operator_that_the_runtime_lacks_in_a_dtype_is_one_sentence(tmp_path):
    with pytest.raises(ExportError, match=r"cannot open model\.onnx: .*Conv.* try float32: model\.float\(\)"):
        export(small_network(torch.float64), tmp_path / "model.onnx", torch.randn(2, 3, 16, 16, dtype=torch.float64))
    linear = nn.Linear(4, 4).double().eval()
    assert export(linear, tmp_path / "model.onnx", torch.randn(2, 4, dtype=torch.float64)).relative_error <= 1e-10


def test_the_file_has_the_opset_that_was_asked_for(tmp_path):
    onnx = pytest.importorskip("onnx")
    for opset in (16, 18, 21):
        export(small_network(), tmp_path / "model.onnx", torch.randn(2, 3, 16, 16), opset_version=opset)
        (written,) = onnx.load(tmp_path / "model.onnx").opset_import
        assert written.version == opset


def test_an_opset_that_cannot_be_written_is_refused(tmp_path, capfd):
    x = torch.randn(2, 3, 16, 16)
    with pytest.raises(ExportError, match=r"opset_version is 11, but .* write opset 18, .*; give opset_version=18, or"):
        export(small_network(), tmp_path / "model.onnx", x, opset_version=11)
    with pytest.raises(ExportError, match=r"leave it out for a \.pt2 file"):
        export(small_network(), tmp_path / "model.pt2", x, opset_version=18)
    assert not list(tmp_path.iterdir())
    assert "Traceback" not in "".join(capfd.readouterr())


def test_inputs_without_an_image_axis_leave_nothing_open(tmp_path):
    report = export(nn.Linear(4, 2).eval(), tmp_path / "model.onnx", torch.randn(2, 4))
    assert (report.dynamic, report.reason) == ("none", "")
