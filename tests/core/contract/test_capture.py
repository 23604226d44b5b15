"""One graph for all batch and image sizes: torch.compile, torch.export, torch.jit.trace, torch.fx; function transforms."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.export import Dim

from tests.core.cases import CAPTURED, VARIANTS
from tests.core.execution import CAPTURED_FORMS, FORMS, TRAINING, build, images, network, operator
from tests.core.networks import SmallNet
from xvolution import XVolution2d, reparameterize
from xvolution.deploy.runtimes.onnx_files import write_traced

SIZES = [(2, 8, 9), (3, 12, 10), (5, 9, 16)]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def check_one_graph(module, backend):
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    for index, (batch, height, width) in enumerate(SIZES):
        x = images(batch, height, width, channels=4)
        with torch.compiler.set_stance("default" if index == 0 else "fail_on_recompile"):
            actual = compiled(x)
        torch.testing.assert_close(actual, module(x), rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize(("branch", "variant", "form"), CAPTURED_FORMS)
def test_inference_compiles_to_one_graph(branch, variant, form):
    with torch.no_grad():
        check_one_graph(operator(branch, variant, form), "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize(("branch", "variant", "form"), [form for form in CAPTURED_FORMS if form[2] == "single"])
def test_the_default_compiler_computes_the_same(branch, variant, form):
    with torch.no_grad():
        check_one_graph(operator(branch, variant, form), "inductor")


@pytest.mark.parametrize(("branch", "variant"), VARIANTS)
def test_every_variant_compiles_without_a_graph_break(branch, variant):
    layer = build(branch, variant, zero_init=False).eval()
    x = torch.randn(2, 8, 9, 9)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize(("branch", "variant"), CAPTURED)
def test_training_compiles_to_one_graph(branch, variant):
    eager = operator(branch, variant, TRAINING).train()
    module = copy.deepcopy(eager)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for index, (batch, height, width) in enumerate(SIZES):
        x = images(batch, height, width, channels=4)
        with torch.compiler.set_stance("default" if index == 0 else "fail_on_recompile"):
            compiled(x).square().sum().backward()
        eager(x).square().sum().backward()
    assert counters["stats"]["unique_graphs"] == 1
    for actual, expected in zip(module.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-3, atol=1e-3)
    for actual, expected in zip(module.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(("branch", "variant", "form"), CAPTURED_FORMS)
def test_export_leaves_batch_and_image_size_open(branch, variant, form):
    module = operator(branch, variant, form)
    open_axes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    exported = torch.export.export(module, (images(channels=4),), dynamic_shapes=open_axes).module()
    for batch, height, width in [(1, 7, 8), *SIZES]:
        x = images(batch, height, width, channels=4)
        torch.testing.assert_close(exported(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("branch", "variant", "form"), CAPTURED_FORMS)
def test_vmap_over_an_ensemble_of_parameters(branch, variant, form):
    members = [operator(branch, variant, form) for _ in range(3)]
    for index, member in enumerate(members):
        for parameter in member.parameters():
            nn.init.normal_(parameter, std=0.2 + 0.1 * index)
    parameters, buffers = torch.func.stack_module_state(members)
    x = images(channels=4)

    def apply(weights, statistics):
        return torch.func.functional_call(members[0], (weights, statistics), (x,))

    expected = torch.stack([member(x) for member in members])
    torch.testing.assert_close(torch.func.vmap(apply)(parameters, buffers), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("branch", "variant", "form"), CAPTURED_FORMS)
def test_gradients_of_each_sample_sum_to_that_of_the_batch(branch, variant, form):
    model, x = network(branch, variant, form), images()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(weights, image):
        return torch.func.functional_call(model, (weights, buffers), (image.unsqueeze(0),)).square().sum()

    single = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(single[name].sum(0), parameter.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("branch", "variant", "form"), FORMS)
def test_traced_graphs_leave_batch_and_image_size_open(branch, variant, form):
    module = network(branch, variant, form)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, images(2))
        for batch, height, width in [(1, 7, 8), *SIZES]:
            x = images(batch, height, width)
            torch.testing.assert_close(traced(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "geometry",
    [
        {"padding": "same_upper", "stride": 2},
        {"padding": "same_upper", "stride": 2, "padding_mode": "reflect"},
        {"padding": "same_upper", "stride": 2, "padding_mode": "replicate"},
        {"padding": "same_upper", "stride": 2, "padding_mode": "circular"},
        {"padding": 0, "kernel_size": 1, "stride": 2},
        {"padding": 0, "kernel_size": 1, "stride": 2, "padding_mode": "reflect"},
    ],
)
@pytest.mark.parametrize("form", [TRAINING, "single", "split"])
def test_traced_graphs_pad_by_the_size_of_the_image(form, geometry):
    torch.manual_seed(0)
    module = XVolution2d(4, 8, **{"kernel_size": 3, **geometry}, zero_init=False).eval()
    module = module if form == TRAINING else reparameterize(module, layout=form)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for example in (images(2, 8, 8, channels=4), images(2, 9, 9, channels=4)):
            traced = torch.jit.trace(module, example)
            for height, width in [(7, 8), (8, 9), (12, 11)]:
                x = images(3, height, width, channels=4)
                torch.testing.assert_close(traced(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("branch", "variant", "form"), FORMS)
def test_fx_records_operators_as_modules(branch, variant, form):
    module, x = network(branch, variant, form), images()
    graph = torch.fx.symbolic_trace(module)
    assert type(graph.get_submodule("layer1.conv1")) is type(module.get_submodule("layer1.conv1"))
    assert graph.state_dict().keys() == module.state_dict().keys()
    torch.testing.assert_close(graph(x), module(x))


@pytest.mark.parametrize(("branch", "variant", "form"), CAPTURED_FORMS)
def test_torchvision_extracts_the_features_of_the_plain_network_by_name(branch, variant, form):
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    module, x = network(branch, variant, form), images()
    _, plain = extraction.get_graph_node_names(SmallNet().eval())
    assert extraction.get_graph_node_names(module)[1] == plain
    features = extraction.create_feature_extractor(module, ["layer1.conv1", "layer2"])(x)
    stem = module.stem_norm(module.stem(x)).relu()
    torch.testing.assert_close(features["layer1.conv1"], module.layer1.conv1(stem))
    torch.testing.assert_close(features["layer2"], module.layer2(module.layer1(stem)))


def test_fx_says_that_an_operator_alone_is_no_network():
    module = operator("pixel_shift", "default", TRAINING)
    with pytest.raises(torch.fx.proxy.TraceError, match=r"records XVolution2d as one module .*nn\.Sequential"):
        torch.fx.symbolic_trace(module)
    graph = torch.fx.symbolic_trace(nn.Sequential(module))
    torch.testing.assert_close(graph(images(channels=4)), module(images(channels=4)))


@pytest.mark.parametrize(("branch", "variant", "form"), FORMS)
def test_torch_script_refuses_with_what_to_do(branch, variant, form):
    module = network(branch, variant, form)
    before = {name: type(part) for name, part in module.named_modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for part in (module, module.layer1.conv1):
            with pytest.raises(
                NotImplementedError, match=r"torch\.jit\.script cannot compile .*; use torch\.jit\.trace"
            ):
                torch.jit.script(part)
    assert {name: type(part) for name, part in module.named_modules()} == before


@pytest.mark.parametrize(("branch", "variant", "form"), [form for form in FORMS if form[2] == "single"])
def test_the_tracing_exporter_leaves_the_batch_open(tmp_path, branch, variant, form):
    onnxruntime = pytest.importorskip("onnxruntime")
    module, path = network(branch, variant, form), tmp_path / "model.onnx"
    names = {"opset_version": 18, "input_names": ["x"], "output_names": ["y"]}
    write_traced(module, (images(1),), path, **names, dynamic_axes={"x": {0: "n", 2: "h", 3: "w"}, "y": {0: "n"}})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, height, width in SIZES:
        x = images(batch, height, width)
        (y,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), module(x), rtol=1e-3, atol=1e-4)
