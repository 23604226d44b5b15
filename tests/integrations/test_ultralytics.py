"""A converted YOLO, trained, resumed, validated, loaded and exported by Ultralytics' own functions."""

import copy
import io
import os
from pathlib import Path

import pytest
import torch

from tests.core.networks import randomize
from tests.integrations.pages import run
from tests.integrations.yolo_data import coco_as_yolo
from xvolution import XVolution2d, conversion_summary, layouts_of

pytest.importorskip("ultralytics", reason="the extra ultralytics is not installed")

from ultralytics import YOLO
from ultralytics.utils import SETTINGS

from xvolution.integrations.ultralytics import KEY, ConvertedNetwork, convert_yolo

TYPES = {"tensor(float)": 32, "tensor(float16)": 16}
QUIET = {"imgsz": 64, "plots": False, "verbose": False}


def operators(model):
    return [name for name, module in model.named_modules() if isinstance(module, XVolution2d)]


def raw(model, images):
    """What the network's head returns for images (N, 3, H, W): (N, 4 + classes, anchors)."""
    with torch.no_grad():
        return model.eval()(images)[0]


@pytest.fixture
def images():
    return torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def data(coco, tmp_path_factory):
    target = tmp_path_factory.mktemp("yolo")
    path = coco_as_yolo(coco, target, pictures=8)
    kept, settings = os.getcwd(), dict(SETTINGS)
    os.chdir(target)
    SETTINGS.update({"runs_dir": str(target / "runs"), "sync": False})
    yield path.name
    os.chdir(kept)
    SETTINGS.update(settings)


def named(kind):
    torch.manual_seed(0)
    return YOLO(kind)


def test_the_outputs_stay_and_fuse_deploys(images):
    yolo = named("yolo11n.yaml")
    randomize(yolo.model)
    plain = copy.deepcopy(yolo.model).double()
    converted = convert_yolo(yolo).model.double()
    assert operators(converted)
    assert torch.equal(raw(converted, images.double()), raw(plain, images.double()))
    randomize(converted)
    expected = raw(converted, images.double())
    left = {row.name: row.reason for row in conversion_summary(converted, images.double()).left}
    assert left["model.0.conv"] == "the stem"
    assert left["model.10.m.0.attn.pe.conv"] == "its projection model.10.m.0.attn.proj.conv is replaced instead"
    fused = copy.deepcopy(converted).fuse(verbose=False)
    assert list(layouts_of(fused)) == operators(converted)
    assert fused.is_fused()
    torch.testing.assert_close(raw(fused, images.double()), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["yolov9t", "yolov10n", "yolo11n-cls", "yolo11n-seg"])
def test_every_task_and_blocks_that_merge_their_kernels(kind, images):
    network = convert_yolo(named(f"{kind}.yaml").model)
    assert isinstance(network, ConvertedNetwork)
    before = raw(randomize(network), images)
    with torch.no_grad():
        after = raw(network.fuse(verbose=False), images)
    largest = before[0] if isinstance(before, tuple) else before
    torch.testing.assert_close(after[0] if isinstance(after, tuple) else after, largest, rtol=1e-3, atol=1e-3)


def test_networks_are_built_pickled_and_loaded_with_their_operators(images):
    plain = named("yolo11n.yaml").model
    converted = convert_yolo(plain)
    again = type(plain)(copy.deepcopy(converted.yaml), nc=7, verbose=False)
    assert operators(again) == operators(converted) != []
    file = io.BytesIO()
    torch.save(randomize(converted), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(raw(loaded, images), raw(converted, images))
    twin = type(plain)(copy.deepcopy(converted.yaml), verbose=False)
    twin.load(converted, verbose=False)
    assert torch.equal(raw(twin, images), raw(converted, images))
    randomize(plain)
    twin = type(plain)(copy.deepcopy(converted.yaml), verbose=False)
    twin.load(plain, verbose=False)
    assert torch.equal(raw(twin, images), raw(plain, images))
    assert operators(twin) == operators(converted)
    assert KEY not in plain.yaml
    assert not isinstance(type(plain)("yolo11n.yaml", verbose=False), ConvertedNetwork)


def test_what_cannot_be_converted_is_said():
    with pytest.raises(TypeError, match="not a Linear; an exported file holds no network"):
        convert_yolo(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="selects no convolution of DetectionModel; there are"):
        convert_yolo(named("yolo11n.yaml"), names=["nothing"])
    with pytest.raises(ValueError, match=r"can be replaced: .*\(its block adds up kernels when it fuses\)"):
        convert_yolo(named("yolov9t.yaml"), names=["*.conv1.conv"])
    fused = named("yolo11n.yaml").model.eval().fuse(verbose=False)
    with pytest.raises(ValueError, match="the network is fused and has no norms any more"):
        convert_yolo(fused)
    with pytest.raises(ValueError, match="is already converted"):
        convert_yolo(convert_yolo(named("yolo11n.yaml"), names=["model.3.conv"]))


class StoppedError(Exception):
    """As a killed process."""


@pytest.mark.slow
def test_training_resumes_with_its_operators(data):
    yolo = convert_yolo(named("yolo11n.yaml"), names=["model.[2-6].*.cv2.conv"])
    names = operators(yolo.model)

    def stop(trainer):
        if trainer.epoch == 1:
            raise StoppedError

    yolo.add_callback("on_train_epoch_start", stop)
    with pytest.raises(StoppedError):
        yolo.train(data=data, epochs=2, batch=4, name="stopped", **QUIET)
    last = yolo.trainer.last
    assert operators(yolo.trainer.ema.ema) == names
    resumed = YOLO(last)
    assert operators(resumed.model) == names
    resumed.train(resume=True)
    assert resumed.trainer.start_epoch == 1
    assert operators(resumed.model) == operators(resumed.trainer.model) == names
    trained = [p for group in resumed.trainer.optimizer.param_groups for p in group["params"]]
    attention = resumed.trainer.model.get_submodule(names[0]).attention_norm.weight
    assert any(parameter is attention for parameter in trained)
    assert attention.abs().max() > 0


@pytest.mark.slow
def test_the_page(data):
    pytest.importorskip("onnxslim")
    names = run("integrations/ultralytics.md")
    best = names["trained"].model
    assert operators(best) == operators(names["yolo"].model) != []
    assert str(names["file"]).endswith(".onnx")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "openvino"])
@pytest.mark.parametrize("quantize", [None, 16, 8])
def test_exports(form, quantize, data, tmp_path):
    pytest.importorskip("onnxslim" if form == "onnx" else "nncf" if quantize == 8 else "openvino")
    yolo = convert_yolo(named("yolo11n.yaml"), names=["model.[2-6].*.cv2.conv", "model.2[0-9].cv2.*"])
    randomize(yolo.model).eval()
    yolo.model.pt_path = str(tmp_path / "best.pt")
    options = {"quantize": 8, "data": data} if quantize == 8 else {"quantize": quantize, "dynamic": quantize is None}
    file = yolo.export(format=form, imgsz=64, **options)
    pictures = torch.rand(1, 3, 64, 64)
    expected = raw(yolo.model, pictures)
    actual = torch.from_numpy(_compiled(form, file)(pictures.numpy()))
    allowed = {None: 1e-5, 16: 2e-3, 8: 2e-2}[quantize]
    assert ((actual - expected).abs().max() / expected.abs().max()) <= allowed


def _compiled(form, file):
    """A function of images; OpenVINO in fp32, where it would take bf16 by itself on processors that have it."""
    if form == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(file)
        (read,) = session.get_inputs()
        return lambda images: session.run(None, {read.name: images.astype(f"float{TYPES[read.type]}")})[0]
    core = pytest.importorskip("openvino").Core()
    (network,) = Path(file).glob("*.xml")
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled(images)[0]
