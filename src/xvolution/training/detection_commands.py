"""The parsers of `xvolution predict` and `xvolution data`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from jsonargparse import ActionYesNo, ArgumentParser

from xvolution.training.errors import InputError
from xvolution.training.files import write_text


def predict_command(arguments: Sequence[str]) -> None:
    """Draw what a detector finds on images, and write it in COCO's format."""
    parser = ArgumentParser(
        prog="xvolution predict", description="Draw what a detector finds on images, and write it in COCO's format."
    )
    parser.add_argument("checkpoint", type=str, help="a .ckpt, .safetensors (training or deployed form) or .onnx file.")
    parser.add_argument("images", nargs="+", type=str, help="files, or folders of them.")
    parser.add_argument("--output", type=str, default="predictions", help="folder for pictures and results.json.")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="what scores less is left out.")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, cuda:1, mps or auto.")
    values = parser.parse_args(list(arguments)).as_dict()
    from xvolution.training.detection_evaluation import predict

    written = predict(values.pop("checkpoint"), values.pop("images"), values.pop("output"), **values)
    print(f"{len(written) - 1} pictures in {written[-1].parent}, results in {written[-1]}")


def data_command(arguments: Sequence[str]) -> None:
    """Check a data set: the one thing to do with it is `check`."""
    parser = ArgumentParser(prog="xvolution data", description="Everything about a folder in COCO's format at once.")
    parser.add_argument("action", choices=["check"], help="what to do.")
    parser.add_argument(
        "folder", type=str, help="with annotations/instances_train*.json, or train/_annotations.coco.json."
    )
    parser.add_argument(
        "--masks", action=ActionYesNo(no_prefix="no-"), default=False, help="every object needs a mask."
    )
    parser.add_argument("--json", type=str | None, help="file for the whole report.")
    values = parser.parse_args(list(arguments)).as_dict()
    from xvolution.training.coco.check import check_folder

    report = check_folder(values["folder"], values["masks"])
    print(report)
    if values["json"] is not None:
        write_text(values["json"], json.dumps(report.to_dict(), indent=2) + "\n")
    if report.refused:
        raise InputError(f"{report.refused} problems of {values['folder']} must be mended.")
