"""A network is judged by images that it did not learn from; where it learned from them, or nobody knows, this is said."""

from __future__ import annotations

import csv
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import TINY, write_folder
from xvolution.compare.config import CompareConfig
from xvolution.compare.run import compare
from xvolution.compare.variants import Variant
from xvolution.explain import explain
from xvolution.training import InputError, TrainConfig, TrainResult, evaluate, open_data, shipping, train
from xvolution.training.checkpoint import read_header, read_weights, save_weights
from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.converting import convert_network
from xvolution.training.held_out import HeldOut, described, require_unseen, seed_of
from xvolution.training.quantization import quantize
from xvolution.training.tasks import CLASSIFY

SEED = 3
JUDGES = "that judge here"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("held-out") / "pictures", {"cats": 20, "dogs": 20})


@pytest.fixture(scope="module")
def judged_by_a_fifth(pictures: Path) -> TrainResult:
    """A plain network of a data set that comes in one part, of which the run's seed held a fifth out."""
    return train(TrainConfig(**settings(pictures, "run")))


def settings(pictures: Path, run: str, **changes: Any) -> dict[str, Any]:
    output = str(pictures.parent / run)
    return {**TINY, "data": str(pictures), "seed": SEED, "operator": "conv", "epochs": 1, "output": output, **changes}


def metadata_of(file: Path) -> ClassifierMetadata:
    return ClassifierMetadata.from_dict(read_header(file))


def test_an_evaluation_takes_the_images_that_judged_the_training(
    judged_by_a_fifth: TrainResult, pictures: Path, tmp_path: Path
) -> None:
    weights = judged_by_a_fifth.weights
    assert metadata_of(weights).provenance["held_out"] == {"holdout": 0.2, "seed": SEED}
    listed = tmp_path / "predictions.csv"
    found = evaluate(weights, predictions=listed)
    with open(judged_by_a_fifth.checkpoint.parent / "history.csv", newline="", encoding="utf-8") as file:
        assert found.to_dict()["loss"] == pytest.approx(float(list(csv.DictReader(file))[-1]["val_loss"]), rel=1e-5)
    held_out = open_data(pictures, seed=SEED).val
    with open(listed, newline="", encoding="utf-8") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [held_out.describe(i) for i in range(len(held_out))]
    with pytest.raises(InputError, match=JUDGES):
        evaluate(weights, seed=0)
    with pytest.raises(
        InputError, match=f"held out the images of --holdout 0.2 with the seed {SEED}; here the images of"
    ):
        evaluate(weights, holdout=0.1)
    with pytest.raises(InputError, match=JUDGES):
        evaluate(weights, data=pictures.parent / "run" / ".." / "pictures", seed=0)  # another name of the same folder
    with pytest.raises(InputError, match=JUDGES):
        quantize(weights, tmp_path / "model.onnx", seed=0)
    assert evaluate(weights, split="train", seed=0).images == 32
    assert evaluate(weights, data=write_folder(tmp_path / "others", {"cats": 10, "dogs": 10}), seed=1).images == 4


def test_attention_is_explained_by_the_images_that_judged_the_training(pictures: Path, tmp_path: Path) -> None:
    found = train(TrainConfig(**settings(pictures, "attention", operator="xvolution", stages=[3])))
    page = explain(found.weights, images=8, output=tmp_path / "page", say=lambda line: None)
    assert page.figures["data"]["of"] == 8
    with pytest.raises(InputError, match=JUDGES):
        explain(found.weights, seed=0, images=8, output=tmp_path / "page", say=lambda line: None)


def test_files_of_runtimes_are_compared_on_the_images_that_judged_the_training(
    judged_by_a_fifth: TrainResult, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(data: str, seed: int) -> None:
        raise InputError(f"opened {data} with the seed {seed}")

    monkeypatch.setattr(shipping, "open_data", opened)
    with pytest.raises(InputError, match=f"opened .*pictures with the seed {SEED}"):
        shipping.deploy_to(judged_by_a_fifth.weights, ["onnxruntime"], data=str(pictures))


@pytest.mark.parametrize("name", ["weights", "teacher"])
def test_a_training_refuses_a_network_that_learned_from_its_judges(
    judged_by_a_fifth: TrainResult, pictures: Path, name: str
) -> None:
    first = {name: str(judged_by_a_fifth.weights)}
    with pytest.raises(InputError, match=f"{JUDGES}.*Give --holdout and --split-seed as they were there"):
        train(TrainConfig(**settings(pictures, name, split_seed=1, **first)))
    assert not (pictures.parent / name / "last.ckpt").exists()
    train(TrainConfig(**settings(pictures, name, seed=1, split_seed=SEED, **first)))


def test_folds_refuse_weights_before_the_first_training(
    judged_by_a_fifth: TrainResult, pictures: Path, tmp_path: Path
) -> None:
    recipe = settings(pictures, "folds", weights=str(judged_by_a_fifth.weights), seed=0)
    for name in ("operator", "output"):
        recipe.pop(name)
    variants = (Variant("conv", "conv"), Variant("xvolution", "xvolution"))
    with pytest.raises(InputError, match=f"{JUDGES}.*here the images of --holdout 1/2 with the seed 0 would judge"):
        compare(CompareConfig(TrainConfig(**recipe), variants, seeds=(0,), folds=2, output=str(tmp_path / "compare")))
    assert not (tmp_path / "compare").exists()


def test_a_conversion_keeps_what_was_held_out(judged_by_a_fifth: TrainResult, tmp_path: Path) -> None:
    file = tmp_path / "converted.safetensors"
    convert_network(str(judged_by_a_fifth.weights), file, TrainConfig(stages=[3]))
    assert metadata_of(file).provenance["held_out"] == {"holdout": 0.2, "seed": SEED}
    assert evaluate(file).images == 8


def test_a_file_that_does_not_say_it_is_warned_about(judged_by_a_fifth: TrainResult, tmp_path: Path) -> None:
    model, metadata = CLASSIFY.load(judged_by_a_fifth.weights)
    assert isinstance(metadata, ClassifierMetadata)
    older = {name: value for name, value in metadata.provenance.items() if name != "held_out"}
    save_weights(tmp_path / "older.safetensors", model, replace(metadata, provenance=older))
    with pytest.warns(
        UserWarning, match="does not say which images of .* were held out in its training.*Give --holdout"
    ):
        assert evaluate(tmp_path / "older.safetensors").images == 8


#: The part that a training held out, the part that judges, and whether the network learned from it.
PARTS = [
    (None, None, False),
    (None, HeldOut(0.1, 0), True),
    (HeldOut(0.1, 0), None, False),
    (HeldOut(0.1, 0), HeldOut(0.1, 0), False),
    (HeldOut(0.1, 0), HeldOut(0.1, 1), True),
    (HeldOut(0.1, 0), HeldOut(0.2, 0), True),
    (HeldOut("2/5", 0), None, True),
    (HeldOut("2/5", 0), HeldOut("2/5", 0), False),
    (HeldOut("2/5", 0), HeldOut("3/5", 0), True),
    (HeldOut("2/5", 0), HeldOut("2/5", 1), True),
]


@pytest.mark.parametrize(("kept", "judges", "learned"), PARTS)
def test_which_parts_a_network_learned_from(
    judged_by_a_fifth: TrainResult, kept: HeldOut | None, judges: HeldOut | None, learned: bool
) -> None:
    metadata = replace(metadata_of(judged_by_a_fifth.weights), data="hf:some/images", provenance=described(kept))
    metadata = ClassifierMetadata.from_dict(metadata.to_dict())
    assert seed_of(metadata, "hf:some/images") == (0 if kept is None else kept.seed)
    require_unseen("a.ckpt", metadata, "hf:other/images", judges, "")
    if learned:
        with pytest.raises(InputError, match=r"^a.ckpt learned from images of hf:some/images .* Do this.$"):
            require_unseen("a.ckpt", metadata, "hf:some/images", judges, "Do this.")
    else:
        require_unseen("a.ckpt", metadata, "hf:some/images", judges, "")


@pytest.mark.parametrize(
    "value", [5, "0.1", {"holdout": 2.0, "seed": 0}, {"holdout": 0.1}, {"holdout": 0.1, "seed": "x"}]
)
def test_a_strange_description_is_a_sentence(judged_by_a_fifth: TrainResult, value: object) -> None:
    metadata = replace(metadata_of(judged_by_a_fifth.weights), data="digits", provenance={"held_out": value})
    with pytest.raises(InputError, match="the file's description of its held-out images cannot be read"):
        require_unseen("a.ckpt", metadata, "digits", None, "")


def test_nothing_is_said_of_a_validation_part(trained: TrainResult) -> None:
    assert read_weights(trained.weights)[1]["provenance"]["held_out"] is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(trained.weights, limit_batches=1)
