"""The queue of GPU experiments: its parts, and each item as a trial on made-up pictures."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

timm = pytest.importorskip("timm")
pytest.importorskip("torchvision")

from experiments.gpu import __main__ as command  # noqa: E402
from experiments.gpu import augment, classify, data, pack, precision, schedule  # noqa: E402
from experiments.gpu.items import ITEMS  # noqa: E402
from experiments.gpu.networks import UNCHANGED, Network, put  # noqa: E402
from experiments.gpu.store import Store  # noqa: E402
from experiments.gpu.summary import summary  # noqa: E402

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not (SHARED / "nuclei").is_dir(), reason="../shared/data is absent")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of the command."""
    monkeypatch.setattr(sys, "argv", ["experiments.gpu", *arguments])
    # The minutes that an item has count from the import of the command, which was when the tests were collected.
    monkeypatch.setattr(command, "_BEGAN", time.monotonic())
    with pytest.raises(SystemExit) as stopped:
        command.main()
    return int(stopped.value.code or 0)


@pytest.mark.slow
@pytest.mark.parametrize("item", list(ITEMS))
def test_a_trial_of_each_item_runs_and_a_second_call_has_nothing_to_do(
    item: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, item, "--tiny", "--output", str(tmp_path)) == 0
    path = tmp_path / f"{item}-tiny.json"
    written = path.read_text()
    assert run(monkeypatch, item, "--tiny", "--output", str(tmp_path)) == 0
    assert path.read_text() == written
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["experiments.gpu", "summary", str(path)])
    command.main()
    shown = capsys.readouterr().out
    assert "xvolution" in shown
    assert "minus conv" in shown or item == "a"


def test_one_training_is_the_same_twice_and_its_deployed_form_judges_alike() -> None:
    network, recipe = Network("resnet10t", (3,), 32, 10), classify.Recipe(1, batch=8, warmup=0, statistics=16)
    train, judge = data.made_up(16, 10), data.made_up(12, 10)
    first, second = (classify.train(network, "xvolution", recipe, 0, train, judge) for _ in range(2))
    assert first["correct"] == second["correct"]
    assert first["epochs"][0]["train_loss"] == second["epochs"][0]["train_loss"]
    assert first["deployed"]["changed"] == 0
    assert classify.unpacked(first["correct"], 12).mean() == pytest.approx(first["epochs"][-1]["top1"])


def test_operators_share_the_plain_networks_start() -> None:
    network = Network("resnet10t", (3,), 32, 10)
    states = []
    for operator in ("conv", "se", "xvolution"):
        torch.manual_seed(0)
        model, new = network.build(operator)
        assert bool(new) == (operator != "conv")
        states.append(model.state_dict()["fc.weight"])
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


@torch.no_grad()
def test_squeeze_and_excitation_starts_as_the_plain_network() -> None:
    torch.manual_seed(0)
    network = Network("tf_efficientnet_lite0", (4, 5), 64, 10)
    plain, x = network.plain().eval(), torch.randn(2, 3, 64, 64)
    expected = plain(x)
    excited = put(plain, "se", network.stages, x, UNCHANGED["se"])
    assert sum(1 for module in excited.modules() if hasattr(module, "excitation")) == 11
    torch.testing.assert_close(excited.eval()(x), expected)


@pytest.mark.parametrize("trivial", [False, True])
def test_augmentation_depends_on_the_seed_alone(trivial: bool) -> None:
    pixels = data.made_up(24).pixels
    first, second, other = (
        augment.Augmentation(48, 0.3, trivial, torch.device("cpu"), seed)(pixels) for seed in (1, 1, 2)
    )
    assert first.shape == (24, 3, 48, 48)
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_whole_crops_are_the_picture_or_its_mirror_image() -> None:
    pixels = data.made_up(16).pixels
    crops = augment.Augmentation(64, 1.0, False, torch.device("cpu"), 0)
    theta = crops._crops(pixels)
    assert float(theta[:, 0, 0].abs().max()) <= 1
    square = (theta[:, 0, 0].abs() > 0.999) & (theta[:, 1, 1] > 0.999)
    images = augment.Augmentation(64, 1.0, False, torch.device("cpu"), 0)(pixels)
    for index in square.nonzero().flatten().tolist():
        picture = pixels[index].float() / 255
        mirrored = picture.flip(-1) if theta[index, 0, 0] < 0 else picture
        torch.testing.assert_close(images[index], mirrored, atol=0.02, rtol=0)


def test_mixing_keeps_probabilities() -> None:
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 4
    random = torch.Generator().manual_seed(0)
    for _ in range(10):
        mixed, target = augment.mixed(images, labels, 4, 0.1, random)
        assert mixed.shape == images.shape
        torch.testing.assert_close(target.sum(1), torch.ones(6))


def test_average_precision_is_that_of_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    random = np.random.default_rng(0)
    images, truth, found = [], [], []
    for image in range(1, 6):
        objects = random.uniform(0, 60, (random.integers(0, 6), 2))
        boxes = np.concatenate([objects, random.uniform(8, 30, objects.shape)], 1)
        noise = random.normal(0, 2.5, boxes.shape)
        guesses = np.concatenate([boxes + noise, random.uniform(10, 40, (3, 4))])
        scores = random.permutation(len(guesses)).astype(np.float32) / 10 + 0.01 * image
        truth += [
            {
                "id": len(truth) + i + 1,
                "image_id": image,
                "category_id": 1,
                "bbox": list(box),
                "area": 100.0,
                "iscrowd": 0,
            }
            for i, box in enumerate(boxes)
        ]
        found += [
            {"image_id": image, "category_id": 1, "bbox": list(box), "score": float(score)}
            for box, score in zip(guesses, scores, strict=True)
        ]
        from torchvision.ops import box_convert, box_iou

        both = [box_convert(torch.from_numpy(values).reshape(-1, 4), "xywh", "xyxy") for values in (guesses, boxes)]
        images.append(precision.match(scores, box_iou(*both).numpy()))
    judge = coco.COCO()
    judge.dataset = {"images": [{"id": i} for i in range(1, 6)], "annotations": truth, "categories": [{"id": 1}]}
    judge.createIndex()
    ran = evaluation.COCOeval(judge, judge.loadRes(found), "bbox")
    ran.evaluate()
    ran.accumulate()
    ran.summarize()
    assert precision.average_precision(images) == pytest.approx(tuple(ran.stats[:2]), abs=1e-9)
    again = precision.from_json(json.loads(json.dumps(precision.to_json(images))))
    assert precision.average_precision(again) == precision.average_precision(images)


@needs_data
def test_packed_nuclei_are_the_annotated_ones(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    annotations = json.loads((SHARED / "nuclei" / "annotations" / "instances_val.json").read_text())
    chosen = annotations["images"][:2]
    small = tmp_path / "nuclei"
    for part in ("train", "val"):
        (small / part).mkdir(parents=True)
        (small / "annotations").mkdir(exist_ok=True)
        (small / "annotations" / f"instances_{part}.json").write_text(json.dumps({**annotations, "images": chosen}))
        for image in chosen:
            source = SHARED / "nuclei" / "val" / image["file_name"]
            (small / part / image["file_name"]).write_bytes(source.read_bytes())
    pack.pack_nuclei(small, tmp_path)
    from experiments.gpu.detect import _read

    for sample, image in zip(_read(tmp_path / "nuclei-val.npz", None), chosen, strict=True):
        rows = [row for row in annotations["annotations"] if row["image_id"] == image["id"]]
        areas = torch.bincount(sample.numbers.flatten())[1:]
        assert sample.pixels.shape == (3, image["height"], image["width"])
        assert int(areas.sum()) == sum(row["area"] for row in rows)


@needs_data
@pytest.mark.slow
def test_packed_pictures_are_those_of_the_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    small = tmp_path / "small"
    small.mkdir()
    table = parquet.read_table(SHARED / "tiny-imagenet" / "val-00000-of-00001.parquet").slice(0, 40)
    for name in ("train-0.parquet", "val-0.parquet"):
        parquet.write_table(table, small / name)
    pack.pack_tiny_imagenet(small, tmp_path)
    packed = data.tiny_imagenet(tmp_path, "val")
    assert packed.labels.tolist() == table.column("label").to_pylist()
    assert packed.pixels.shape == (40, 3, 64, 64)


def test_held_out_part_is_none_of_the_rest() -> None:
    pictures = data.made_up(40)
    rest, held = data.held_out(pictures)
    assert (len(rest), len(held)) == (36, 4)
    seen = {picture.numpy().tobytes() for picture in rest.pixels}
    assert not any(picture.numpy().tobytes() in seen for picture in held.pixels)


def one() -> dict[str, int]:
    return {"value": 1}


def test_what_an_earlier_call_did_is_not_done_again(tmp_path: Path) -> None:
    earlier = Store("x", tmp_path / "earlier", {"epochs": 3})
    earlier.add("done", {"value": 0})
    store = Store("x", tmp_path / "now", {"epochs": 3}, [tmp_path / "earlier"])
    assert schedule.run(store, {"done": one, "more": one}, 0, time.monotonic() + 60)
    again = Store("x", tmp_path / "now", {"epochs": 3})
    assert [again.records[key]["value"] for key in ("done", "more")] == [0, 1]
    with pytest.raises(SystemExit, match="other settings"):
        Store("x", tmp_path / "now", {"epochs": 4})


@pytest.mark.slow
def test_nothing_is_started_when_the_time_is_over(tmp_path: Path) -> None:
    store = Store("x", tmp_path, {})
    assert not schedule.run(store, {"more": one}, 2, time.monotonic() - 1)
    assert schedule.run(store, {"more": one, "most": one}, 2, time.monotonic() + 600)
    assert store.records["most"]["value"] == 1


def test_summary_gives_differences_with_intervals(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    records = {}
    for operator, share in (("conv", 0.5), ("se", 0.5), ("xvolution", 0.9)):
        for seed in range(2):
            right = torch.from_numpy(random.random(400) < share)
            epoch = {"top1": float(right.float().mean()), "top5": 1.0, "loss": 1.0}
            records[f"{operator} seed {seed}"] = {
                "correct": classify.packed(right),
                "pictures": 400,
                "parameters": 1,
                "epochs": [epoch],
            }
    path = tmp_path / "b.json"
    path.write_text(json.dumps({"settings": {}, "records": records}))
    line = next(line for line in summary([path]).splitlines() if line.startswith("| xvolution"))
    assert line.count(" to ") == 2
    assert "+3" in line or "+4" in line
