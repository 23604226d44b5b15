"""What was given cannot be used, or the run fails: a sentence, and nothing half written."""

from __future__ import annotations

import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.training.conftest import write_folder
from xvolution.training import InputError, RunError, TrainConfig, evaluate, load_model, open_data, train
from xvolution.training.checkpoint import read_weights
from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.classification.module import Classification
from xvolution.training.fit import TrainResult


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Every write beyond `size` bytes of a file fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_is_named(tiny: Callable[..., TrainConfig], image_folder: Path, workers: int) -> None:
    bad = truncate(image_folder / "cats" / "03.png")
    with pytest.raises(InputError) as failure:
        train(tiny(data=str(image_folder), batch_size=8, workers=workers))
    assert str(bad) in str(failure.value)
    assert "Traceback" not in str(failure.value)


def test_a_file_that_is_no_image_is_skipped_and_counted(tiny: Callable[..., TrainConfig], image_folder: Path) -> None:
    for name in ("00", "01", "02", "03", "04"):
        (image_folder / "cats" / f"{name}.png").write_bytes(b"no image")
    config = tiny(data=str(image_folder), batch_size=4, limit_train_batches=None, epochs=1, on_bad_image="skip")
    with pytest.warns(UserWarning, match="not a readable image"):
        result = train(config)
    splits = open_data(image_folder)
    assert 1 <= result.history[0]["skipped_images"] <= 5
    with pytest.warns(UserWarning, match="not a readable image"):
        found = evaluate(result.weights, image_folder, split="train", on_bad_image="skip", workers=0)
    assert found.skipped + found.images == len(splits.train)
    assert found.skipped >= 1


def test_an_empty_class_folder(image_folder: Path) -> None:
    (image_folder / "birds").mkdir()
    with pytest.raises(InputError, match="birds holds no images"):
        open_data(image_folder)


def test_a_class_that_training_has_not(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"cats": 2, "dogs": 2})
    write_folder(tmp_path / "val", {"cats": 2, "emus": 2})
    with pytest.raises(InputError, match="emus"):
        open_data(tmp_path)


def test_labels_beyond_the_classes(trained: TrainResult, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "many", {f"class{i:02d}": 2 for i in range(12)})
    with pytest.raises(InputError, match=r"labels outside of the network's 10 classes.*class10"):
        evaluate(trained.weights, folder, split="train")


@pytest.mark.parametrize("data", ["/no/such/folder", "./nothing", "torchvision:NoSuchData"])
def test_no_such_data(data: str) -> None:
    with pytest.raises(InputError, match=r"there is no|no data set"):
        open_data(data)


def test_a_checkpoint_of_another_architecture(
    trained: TrainResult, tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    wider = {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]}
    with pytest.raises(InputError, match="do not fit the network"):
        train(tiny(resume=str(trained.checkpoint), model_kwargs=wider))
    with pytest.raises(InputError, match="checkpoint of resnet18, not of resnet34"):
        train(tiny(resume=str(trained.checkpoint), model="resnet34"))
    weights, header = read_weights(trained.weights)
    metadata = ClassifierMetadata.from_dict(header)
    weights.pop("fc.weight")
    stranger = tmp_path / "stranger.safetensors"
    save_file(weights, stranger, metadata={"xvolution": metadata.to_json()})
    with pytest.raises(InputError, match=r"do not fit the network: 1 weights are missing \(fc.weight"):
        load_model(stranger)


class Payload:
    """What somebody would pickle to have code run where it is loaded."""

    ran = False

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (exec, ("from tests.training.test_bad_input import Payload; Payload.ran = True",))


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_is_refused_and_does_not_run(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "stranger.ckpt"
    if legacy:
        path.write_bytes(pickle.dumps({"state_dict": Payload()}))
    else:
        torch.save({"state_dict": Payload()}, path)
    with pytest.raises(InputError, match="was refused"):
        load_model(path)
    assert not Payload.ran


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors", "x.onnx", "x.xml", "x.pt2", "x"])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(InputError, match="there is no file"):
        evaluate(path, "digits")
    path.write_bytes(b"this is a text, not a checkpoint\n" * 20)
    with pytest.raises(InputError, match="is not a "):
        evaluate(path, "digits")


def test_plain_weights_of_another_library(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "w.ckpt")
    for name in ("w.safetensors", "w.ckpt"):
        with pytest.raises(InputError, match=r"does not name its network|does not say which network"):
            load_model(tmp_path / name)


def test_a_truncated_checkpoint(trained: TrainResult, tmp_path: Path) -> None:
    for source in (trained.checkpoint, trained.weights):
        copy = tmp_path / source.name
        copy.write_bytes(source.read_bytes())
        with pytest.raises(InputError, match="damaged"):
            load_model(truncate(copy))


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Classification.training_step

    def poisoned(self: Classification, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.current_epoch == 1 and batch_idx == 3:
            batch["image"][0, 0, 0, 0] = float("nan")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classification, "training_step", poisoned)
    config = tiny(checkpoint_every=2)
    with pytest.raises(RunError, match=r"nan in epoch 2, batch 4 \(step 9\)"):
        train(config)
    checkpoint = torch.load(config.run_dir / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint["state_dict"].values())


def test_a_full_disk_leaves_no_half_written_file(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = tiny()
    with largest_file(60_000), pytest.raises(RunError, match="could not be written"):
        train(config)
    left = [path for path in config.run_dir.rglob("*") if path.suffix in (".ckpt", ".safetensors")]
    assert left == []
    with largest_file(10), pytest.raises(RunError, match=r"p.csv could not be written"):
        evaluate_something(tmp_path)
    assert list(tmp_path.glob("*.csv")) + list(tmp_path.glob(".*")) == []


def evaluate_something(folder: Path) -> None:
    from xvolution.training.files import write_text

    write_text(folder / "p.csv", "x" * 1000)


def test_a_full_disk_keeps_the_previous_checkpoint(tiny: Callable[..., TrainConfig]) -> None:
    before = train(tiny(epochs=1)).checkpoint.read_bytes()
    with largest_file(60_000), pytest.raises(RunError, match="could not be written"):
        train(tiny(epochs=2, resume="last"))
    assert (tiny().run_dir / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"lr": 0.0},
        {"batch_size": 3, "mixup": 0.2},
        {"model": "resnet1234"},
        {"model_kwargs": {"no_such_argument": 1}},
        {"optimizer": "no_such_optimizer"},
        {"schedule": "no_such_schedule"},
        {"auto_augment": "no_such_policy"},
        {"accelerator": "no_such_accelerator"},
        {"batch_size": 4096},
        {"holdout": 1.5},
        {"model": "vgg11", "model_kwargs": {}},
        {"resume": "last"},
    ],
    ids=str,
)
def test_settings_that_cannot_be(tiny: Callable[..., TrainConfig], changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\.$|\)$|: ") as failure:
        train(tiny(**changes))
    assert getattr(failure.value, "exit_code", None) == 2
