"""Detectors are compared as classifiers are: the same grid and page, by average precision."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")
pytest.importorskip("matplotlib")

from tests.comparing import Inline, Text
from tests.training import coco_folder
from tests.training.test_coco import guesses
from xvolution import XVolutionConfig
from xvolution.bench.detectors import count_detector_flops
from xvolution.cli import main
from xvolution.compare import CompareConfig, Variant, compare, detect, preset_names, run
from xvolution.compare.commands import parse_compare
from xvolution.compare.grid import Cell, cells, claim
from xvolution.compare.register import comparison_of
from xvolution.compare.timing import latencies
from xvolution.conversion.config import Conversion, Placement
from xvolution.deploy.runtimes import LoadedFile
from xvolution.models.detection import DetectorSpec, build_detector
from xvolution.operator import ReparameterizationError
from xvolution.training import DetectionConfig, DetectionEvaluation, InputError, RunError, TrainConfig
from xvolution.training.coco import open_detection
from xvolution.training.commands import parse_run
from xvolution.training.tasks import config_from_dict

TINY: dict[str, Any] = {
    "backbone": "timm/test_resnet",
    "trainable_layers": 5,
    "norm": "batch",
    "min_size": 64,
    "max_size": 96,
    "model_kwargs": {
        "rpn_pre_nms_top_n_train": 60,
        "rpn_post_nms_top_n_train": 30,
        "rpn_pre_nms_top_n_test": 60,
        "rpn_post_nms_top_n_test": 30,
        "box_batch_size_per_image": 16,
        "box_detections_per_img": 5,
        # A network that has hardly learned is sure of nothing, and should find something all the same.
        "box_score_thresh": 0.0,
    },
    "epochs": 1,
    "limit_train_batches": 1,
    "limit_val_batches": 2,
    "accelerator": "cpu",
    "workers": 0,
}
VARIANTS = (Variant("conv", "conv"), Variant("xvolution", "xvolution"))


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_folder.write_folder(tmp_path_factory.mktemp("comparison") / "blocks")


def configured(blocks: Path, folder: Path, **changes: Any) -> CompareConfig:
    recipe = DetectionConfig(**{**TINY, "task": "segment", "data": str(blocks), **changes.pop("recipe", {})})
    return CompareConfig(
        recipe, **{"variants": VARIANTS, "seeds": (0,), "output": str(folder), "latency_rounds": 2, **changes}
    )


@pytest.fixture(scope="module")
def compared(blocks: Path) -> Path:
    """The folder of a comparison of two detectors with masks."""
    folder = blocks.parent / "compared"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "launcher_for", Inline)
        compare(configured(blocks, folder))
    torch.set_num_threads(threads)
    return folder


@pytest.mark.slow
def test_the_page_is_about_mask_ap(compared: Path) -> None:
    figures = json.loads((compared / "results.json").read_text(encoding="utf-8"))
    page = Text()
    page.feed((compared / "report.html").read_text(encoding="utf-8"))
    text = " ".join("".join(page.shown).replace("\u00a0", " ").split())
    assert page.loads == []
    assert "points of mask AP against conv" in figures["headline"]
    assert figures["headline"] in text
    assert "maskrcnn over timm/test_resnet, 1 epoch, 1 seed (0), evaluated on 4 images" in text
    assert "FLOPs are of one image of 64 x 64 pixels, without the heads of regions that no variant changes." in text
    assert "at batch 1, the first images of the evaluation; the time of a detector depends on the number of" in text
    assert (
        "other images of the same kind, with average precision recomputed for each draw; the words rest on this interval"
        in text
    )
    assert "top-" not in text
    for name in ("mask AP", "mask AP50", "mask AP75", "box AP", "box AP50"):
        assert name in text
    for row in figures["variants"]:
        wanted = [f"{100 * row['score']['estimate']:.2f} %", f"{100 * row['metrics']['box_ap']:.2f} %", row["verdict"]]
        wanted += [f"{row['deployed_flops'] / 1e6:.2f} M", f"{row['latency']['median_ms']:.2f} ms"]
        assert [part for part in wanted if part not in text] == []


@pytest.mark.slow
def test_the_figures_are_those_of_the_trainings(compared: Path) -> None:
    figures = json.loads((compared / "results.json").read_text(encoding="utf-8"))
    assert (figures["task"], figures["metrics"][0]["key"]) == ("segment", "mask_ap")
    for cell in figures["cells"]:
        for metric in figures["metrics"]:
            assert cell[metric["key"]] == pytest.approx(cell["history"][-1][f"val_{metric['key']}"], abs=1e-6)
    plain, xvolution = figures["variants"]
    assert xvolution["deployed_flops_ratio"] > 1
    assert plain["latency"]["pixels"] == [[48, 64]]
    assert xvolution["bootstrap"]["estimate"] == pytest.approx(xvolution["difference"]["estimate"])
    with open(compared / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mask_ap"]) for row in rows] == [cell["mask_ap"] for cell in figures["cells"]]
    assert rows[1]["command"].startswith("xvolution train --task segment")


@pytest.mark.slow
def test_latency_is_that_of_the_runtime_that_ships(
    compared: Path, blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole detector is written and run there, on the first image of the validation part."""
    pytest.importorskip("onnxruntime")
    shutil.copytree(compared, tmp_path / "again")
    monkeypatch.setattr(run, "launcher_for", lambda config: pytest.fail("a cell was started"))
    ran: list[tuple[int, ...]] = []
    run_there = detect._run_file

    def counted(file: LoadedFile, image: torch.Tensor, *folder: Any) -> list[torch.Tensor]:
        ran.append(tuple(image.shape))
        return run_there(file, image, *folder)

    monkeypatch.setattr(detect, "_run_file", counted)
    latency = compare(configured(blocks, tmp_path / "again", latency_runtime="onnxruntime")).figures["latency"]
    assert latency["runtime"] == "onnxruntime"
    assert latency["forms"]["conv"]["ratio"] == 1
    assert latency["forms"]["xvolution"]["median_ms"] > 0
    assert set(ran) == {(3, 48, 64)}
    assert len(ran) >= 2 * 2


@pytest.mark.slow
def test_a_runtime_that_takes_no_whole_detector_is_not_timed_by_its_pyramid(
    compared: Path, blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    shutil.copytree(compared, tmp_path / "again")
    write = detect.export_detector
    monkeypatch.setattr(detect, "export_detector", partial(write, whole=False))
    config = configured(blocks, tmp_path / "again", latency_runtime="onnxruntime")
    with pytest.raises(
        RunError, match="no latency was measured: ONNX Runtime cannot take the whole detector: asked for"
    ):
        latencies(config, cells(config))


@pytest.mark.slow
def test_done_cells_are_skipped_and_another_recipe_is_refused(
    compared: Path, blocks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "launcher_for", lambda config: pytest.fail("a cell was started"))
    assert len(compare(configured(blocks, compared)).figures["cells"]) == 2
    with pytest.raises(InputError, match="min_size was 64, is 80"):
        compare(configured(blocks, compared, recipe={"min_size": 80}))
    with pytest.raises(InputError, match='task was "segment", is "detect"'):
        compare(configured(blocks, compared, recipe={"task": "detect"}))
    classifiers = CompareConfig(TrainConfig(data=str(blocks)), VARIANTS, output=str(compared))
    with pytest.raises(InputError, match='task was "segment", is "classify"'):
        claim(classifiers, cells(classifiers))


@pytest.mark.slow
def test_a_deployed_form_that_differs_is_not_timed(
    compared: Path, blocks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(*_: Any, **__: Any) -> None:
        raise ReparameterizationError("the deployed detector differs from the trained one")

    monkeypatch.setattr(detect, "deploy_detector", differs)
    config = configured(blocks, compared, latency_rounds=3)
    with pytest.raises(
        RunError, match=r"differs from the trained one\. The report has all other results; give --latency-rounds 0"
    ):
        latencies(config, cells(config))


def judged_cells(blocks: Path, folder: Path, loss: dict[str, float], seeds: tuple[int, ...]) -> list[Cell]:
    """Cells whose detections are the truth with errors; a variant loses so large a part of them."""
    config = configured(blocks, folder, seeds=seeds, recipe={"task": "detect", "limit_val_batches": None})
    grid = cells(config)
    source = open_detection(blocks, True).val
    for cell in grid:
        metrics = guesses(source, cell.train.seed)
        metrics.kinds = ("box",)
        kept = np.random.default_rng(cell.train.seed).random(len(metrics.results)) >= loss[cell.variant.label]
        metrics.results = [each for each, keep in zip(metrics.results, kept, strict=True) if keep]
        evaluation = DetectionEvaluation(metrics.compute(), [], len(source), 0.1, 0, metrics)
        cell.folder.mkdir(parents=True)
        figures = comparison_of(cell.train).judge([cell.train], [evaluation], cell.folder)
        assert figures["box_ap"] == metrics.compute()["box_ap"]
        with np.load(cell.folder / "resampled.npz") as file:
            assert len(file["image_ids"]) == 8
    return grid


def test_seeds_and_images_are_drawn_again(blocks: Path, tmp_path: Path) -> None:
    grid = judged_cells(blocks, tmp_path, {"conv": 0.8, "xvolution": 0.0}, (0, 1, 2))
    folders = {label: [cell.folder for cell in grid if cell.variant.label == label] for label in ("conv", "xvolution")}
    task = comparison_of(grid[0].train)
    found = task.bootstrap(folders["xvolution"], folders["conv"])
    assert found is not None
    assert found.seeds == 3
    values = {label: [float(np.load(each / "resampled.npz")["figure"]) for each in folders[label]] for label in folders}
    assert found.estimate == pytest.approx(np.mean(values["xvolution"]) - np.mean(values["conv"]))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.estimate < found.high
    same = task.bootstrap(folders["conv"], folders["conv"])
    assert same is not None
    assert (same.low, same.estimate, same.high) == (0, 0, 0)


def test_other_images_leave_no_interval_over_images(blocks: Path, tmp_path: Path) -> None:
    grid = judged_cells(blocks, tmp_path, {"conv": 0.0, "xvolution": 0.0}, (0,))
    with np.load(grid[0].folder / "resampled.npz") as file:
        changed = {**file, "image_ids": file["image_ids"] + 1}
    np.savez(grid[0].folder / "resampled.npz", **changed)
    assert comparison_of(grid[0].train).bootstrap([grid[1].folder], [grid[0].folder]) is None


def test_the_command_of_a_cell_trains_the_cell() -> None:
    flags = ["--task", "segment", "--parts", '["backbone"]', "--norm", "batch", "--stages", "[2]"]
    config, _ = parse_compare(["--operators", "xvolution:stages=[3,4]", *flags, "--output", "some where"])
    assert isinstance(config.recipe, DetectionConfig)
    assert (config.recipe.architecture, config.recipe.lr, config.recipe.epochs) == ("maskrcnn", 0.005, 12)
    for cell in cells(config):
        words = shlex.split(shlex.join(cell.commands[0]))
        assert words[:4] == ["xvolution", "train", "--task", "segment"]
        assert parse_run(words[2:]) == cell.train
        assert config_from_dict(json.loads(json.dumps(cell.train.to_dict()))) == cell.train


def test_a_preset_may_name_the_task(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: {task: segment, min_size: 320, parts: [backbone]}\nvariants: [xvolution]\n")
    config, _ = parse_compare(["--preset", str(file), "--data", "photos", "--max-size", "400"])
    assert isinstance(config.recipe, DetectionConfig)
    assert (config.recipe.task, config.recipe.min_size, config.recipe.max_size) == ("segment", 320, 400)
    assert config.folder == Path("runs/compare-photos-maskrcnn-resnet50")
    config, _ = parse_compare(["--preset", str(file), "--task", "detect"])
    assert config.recipe == DetectionConfig(task="detect", min_size=320, parts=["backbone"])


@pytest.mark.slow
@pytest.mark.parametrize("name", preset_names())
def test_presets_build_detectors(name: str, blocks: Path) -> None:
    flags = ["--task", "detect", "--data", str(blocks), "--backbone", "timm/test_resnet", "--seeds", "1"]
    config, _ = parse_compare(["--preset", name, *flags])
    build = comparison_of(config.recipe).builder(config.recipe)
    # The other variants differ by what the presets of classifiers are tested for.
    assert isinstance(build(cells(config)[1].train), torch.nn.Module)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--architecture", "yolo"], "--architecture is yolo; it must be fasterrcnn, maskrcnn, retinanet or fcos"),
        (["--model", "resnet18", "--small-images"], "there is no flag --model"),
        (["--architecture", "maskrcnn"], "maskrcnn with --task segment"),
        (["--data", "/no/such/folder"], "/no/such/folder"),
        (["--backbone", "resnet9"], "the variant 'conv' cannot be built"),
        (["--backbone-weights", "none.safetensors"], "there is no file none.safetensors"),
        (["--operators", "xvolution:stages=[9]"], "the variant 'xvolution:stages=[9]' cannot be built"),
        (["--holdout", "2"], "--holdout is 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_answered_with_one_sentence(
    arguments: list[str],
    message: str,
    blocks: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--task", "detect", "--operators", "xvolution", "--data", str(blocks), "--backbone", "resnet18"]
    command = ["compare", *flags, *arguments]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_images_without_objects_are_refused(tmp_path: Path) -> None:
    folder = coco_folder.write_folder(tmp_path / "blocks")
    empty = coco_folder.content()
    empty["annotations"] = [each for each in empty["annotations"] if each["image_id"] > 101]
    coco_folder.write(folder, "val", empty)
    recipe = DetectionConfig(**TINY, data=str(folder))
    comparison_of(recipe).builder(recipe)
    for few in (replace(recipe, limit_val_batches=1), replace(recipe, limit_val_batches=2, batch_size=1)):
        with pytest.raises(InputError, match=r"the 2 images of .* have no objects"):
            comparison_of(few).builder(few)


@pytest.mark.parametrize("architecture", ["maskrcnn", "fcos"])
def test_flops_are_those_that_do_not_depend_on_what_is_found(architecture: str) -> None:
    spec = DetectorSpec(architecture, backbone="timm/test_resnet", num_classes=2, min_size=60)
    converted = replace(spec, conversion=Conversion(XVolutionConfig(), Placement(stages=(3,))).to_dict())
    plain, with_attention = (count_detector_flops(build_detector(each).eval()) for each in (spec, converted))
    assert plain.pixels == (64, 64)
    assert plain.masks == 0
    assert 1 < with_attention.flops / plain.flops < 1.3
    if architecture == "maskrcnn":
        masks = count_detector_flops(build_detector(spec).eval(), mask_head=True)
        # Four convolutions of 256 channels on 14 x 14, a transposed one to 28 x 28, and a 1x1 to two classes.
        head = 4 * 256 * 256 * 9 * 14**2 + 256 * 256 * 4 * 14**2 + 256 * 2 * 28**2
        assert masks.masks == 100
        assert masks.flops - plain.flops == 100 * 2 * head
