"""Names and properties in written files, and archives that would run code when they are read."""

import io
import json
import zipfile

import pytest
import torch
from torch import nn

from xvolution import ExportError, export
from xvolution.deploy.runtimes import RUNTIMES, Labels
from xvolution.deploy.runtimes.pt2_files import require_plain

TEXT = 'a "quoted" <tag> & two\nlines, \u00e9, \U0001f600'


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval()


def needs(runtime):
    for package in (*runtime.packages, *runtime.writer_packages):
        pytest.importorskip(package)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch_export", "litert"])
def test_properties_travel_in_the_file(tmp_path, network, name):
    runtime = RUNTIMES[name]
    needs(runtime)
    path, x = tmp_path / f"model{runtime.ending}", torch.randn(2, 3, 12, 12)
    export(network, path, x, properties={"about": json.dumps(TEXT), "other": "1"})
    found = runtime.properties(path)
    assert json.loads(found["about"]) == TEXT
    assert found["other"] == "1"
    assert runtime.load(path).input_shapes == ((None, 3, None, None),)
    with pytest.raises(FileNotFoundError):
        runtime.properties(tmp_path / "none.onnx")
    export(network, path, x)
    assert "about" not in runtime.properties(path)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_inputs_outputs_and_open_axes_have_names(tmp_path, network, name):
    runtime = RUNTIMES[name]
    needs(runtime)
    path, x = tmp_path / f"model{runtime.ending}", torch.randn(2, 3, 12, 12)
    export(network, path, x, input_names=["images"], output_names=["features"])
    assert runtime.load(path).output_names == ("features",)
    with pytest.raises(ExportError, match="output_names has 2 names, and the network has 1 outputs"):
        export(network, path, x, output_names=["a", "b"])
    with pytest.raises(ExportError, match="names of inputs and outputs must differ"):
        export(network, path, x, input_names=["a"], output_names=["a"])
    if name == "onnxruntime":
        import onnx

        graph = onnx.load(path).graph
        shapes = [
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.output)
        ]
        assert shapes[0] == ["batch", 3, "height", "width"]
        assert shapes[1][:2] == ["batch", 4]
        assert "height" in shapes[1][2]
        assert "width" in shapes[1][3]
        export(network, path, x, dynamic=False)
        assert [dim.dim_value for dim in onnx.load(path).graph.input[0].type.tensor_type.shape.dim] == [2, 3, 12, 12]


def test_a_name_that_is_taken_inside_of_the_graph_is_moved(tmp_path, network):
    onnx = pytest.importorskip("onnx")
    runtime = RUNTIMES["onnxruntime"]
    needs(runtime)
    path, x = tmp_path / "model.onnx", torch.randn(2, 3, 12, 12)
    export(network, path, x)
    inner = onnx.load(path).graph.node[0].output[0]
    weight = onnx.load(path).graph.initializer[0].name
    runtime.label(path, Labels([weight], [inner]))
    onnx.checker.check_model(onnx.load(path))
    session = runtime.load(path)
    assert (session.input_names, session.output_names) == ((weight,), (inner,))
    torch.testing.assert_close(session(x)[0], network(x).detach(), rtol=1e-4, atol=1e-5)


class Harmful:
    def __reduce__(self):
        return print, ("code has run",)


def changed(path, change):
    """The archive with what ``change`` makes of its entries."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def model_with(**values):
    def change(entries):
        model = json.loads(entries["archive/models/model.json"])
        node = model["graph_module"]["graph"]["nodes"][0]
        if "target" in values:
            node["target"] = values["target"]
        if "guard" in values:
            model["guards_code"] = [values["guard"]]
        if "size" in values:
            sizes = [each for each in walk(model) if "expr_str" in each]
            assert sizes
            sizes[0]["expr_str"] = values["size"]
        entries["archive/models/model.json"] = json.dumps(model).encode()

    return change


def walk(value):
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(each)


def pickled(entry):
    def change(entries):
        buffer = io.BytesIO()
        torch.save(Harmful(), buffer)
        entries[f"archive/{entry}"] = buffer.getvalue()

    return change


def again_as(name):
    def change(entries):
        entries[name] = entries["archive/models/model.json"]

    return change


def pickled_weights(entries):
    name = "archive/data/weights/model_weights_config.json"
    config = json.loads(entries[name])
    next(each for each in walk(config) if "use_pickle" in each)["use_pickle"] = True
    entries[name] = json.dumps(config).encode()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (model_with(target="torch.os.system"), r"its graph calls torch\.os\.system"),
        (model_with(target="torch.hub.load"), r"its graph calls torch\.hub\.load"),
        (model_with(target="_operator.methodcaller"), r"its graph calls _operator\.methodcaller"),
        (model_with(target="torch.ops.aten.from_file.default"), r"its graph calls torch\.ops\.aten\.from_file"),
        (model_with(guard="__import__('os').getpid() > 0"), "is not arithmetic on sizes"),
        (model_with(guard="L.__class__"), "is not arithmetic on sizes"),
        (model_with(size="print('code has run') or 1"), "is not arithmetic on sizes"),
        (model_with(size="Integer('__import__(\"os\").getpid()')"), "is not arithmetic on sizes"),
        (model_with(size="(lambda: 1)()"), "is not arithmetic on sizes"),
        (pickled("data/sample_inputs/model.pt"), "holds pickled objects other than tensors"),
        (pickled("data/constants/opaque_obj_0"), "is code or a pickled object"),
        (pickled("data/aotinductor/model/model.so"), "is code or a pickled object"),
        (pickled_weights, "refers to pickled weights"),
        (again_as("archive/Models/model.json"), "several entries have the same name"),
        (again_as("other/models/model.json"), "several entries have the same name"),
        (lambda entries: entries.pop("archive/models/model.json"), "holds no program of torch.export"),
    ],
)
def test_an_archive_that_could_run_code_is_refused(tmp_path, network, capfd, change, sentence):
    path = tmp_path / "model.pt2"
    export(network, path, torch.randn(2, 3, 12, 12))
    require_plain(path)
    changed(path, change)
    with pytest.raises(ExportError, match=sentence):
        RUNTIMES["torch_export"].load(path)
    assert "code has run" not in capfd.readouterr().out
