"""What is written runs elsewhere and computes the same, at any batch and image size."""

import sys

import pytest
import torch
from torch import nn

from tests.core.networks import SmallNet, randomize
from xvolution import ExportError, XVolution2d, XVolutionConfig, convert, export, reparameterize

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

export_module = sys.modules["xvolution.deploy.export"]

BRANCHES = [
    {"gate": "sigmoid", "global_term": True, "window_norm": True},
    {"similarity": "dot"},
    {"attention": "linear"},
    {"attention": "global"},
    {"attention": "global", "query_key_norm": True},
    {"attention": "image"},
    {"attention": "image", "separable": True},
    {"attention": "image", "channel_keys": True},
    {"attention": "shared"},
]


def deployed_network(**options):
    torch.manual_seed(0)
    return reparameterize(randomize(convert(SmallNet(), XVolutionConfig(stages=(2,), **options))).eval())


@pytest.mark.parametrize("options", BRANCHES)
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_every_branch_exports_with_open_batch_and_size(tmp_path, options, ending):
    report = export(deployed_network(**options), tmp_path / f"model.{ending}", torch.randn(1, 3, 16, 16))
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

    def write_wrong(program, path, opset_version):
        path.write_bytes(b"wrong")
        return lambda inputs: [torch.zeros(inputs[0].shape[0], 5)]

    monkeypatch.setitem(export_module._WRITERS, ".pt2", write_wrong)
    with pytest.raises(ExportError, match="computes something else than the model"):
        export(deployed_network(), target, torch.randn(2, 3, 16, 16))
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    assert target.read_bytes() == b"an older file"


@pytest.mark.parametrize(
    ("name", "inputs", "error", "sentence"),
    [
        ("model.tflite", torch.zeros(1, 3, 8, 8), ValueError, "must end in .onnx, .pt2, .xml"),
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
    monkeypatch.setattr(export_module, "find_spec", lambda package: None)
    with pytest.raises(ExportError, match=r"needs onnx, onnxscript, onnxruntime; install xvolution\[export\]"):
        export(SmallNet().eval(), tmp_path / "model.onnx", torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("options", "fixed"),
    [
        ({"attention": "image"}, 1),
        ({"attention": "image", "separable": True}, 1),
        ({"attention": "image", "channel_keys": True}, 1),
        ({"attention": "shared"}, 2),
    ],
)
def test_a_kernel_for_each_image_is_one_convolution_for_a_fixed_batch(tmp_path, options, fixed):
    onnx = pytest.importorskip("onnx")
    layer = XVolution2d(8, 8, 3, padding=1, zero_init=False, **options)
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
