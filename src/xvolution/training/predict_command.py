"""The parser of `xvolution predict`."""

from __future__ import annotations

from collections.abc import Sequence

from xvolution.training.flags.flag import Flag
from xvolution.training.flags.parser import Parser
from xvolution.training.flags.shared import DEVICE, add_checksum, add_reading
from xvolution.training.flags.task import add_task_options


def predict_command(arguments: Sequence[str]) -> None:
    """Run a network on pictures, print its predictions, and write them to the files that were asked for."""
    parser = Parser(
        "predict",
        "Print the most probable classes of pictures, or detect the objects on them. Detections are drawn on the pictures\n"
        "and written in COCO's format.",
    )
    model = "a .ckpt, .safetensors (training or deployed form), .onnx, .xml, .pt2, .tflite or .mlpackage file."
    parser.add_argument("model", type=str, metavar="MODEL", help=model)
    pictures = "picture files, folders of them, or patterns such as '*.jpg'."
    parser.add_argument("pictures", nargs="+", type=str, help=pictures)
    bad = Flag("on_bad_image", str, "error", "what to do with an unreadable picture: error stops, skip leaves it out.")
    parser.add_flag("data", bad, choices=["error", "skip"])
    add_reading(parser, outside_images=False)
    parser.add_flag("machine", DEVICE)
    parser.add_flag("machine", Flag("batch_size", int, 32, "number of pictures in a batch, for classifiers."))
    add_checksum(parser)
    add_task_options(parser, "predict")
    values = parser.parse_args(list(arguments)).as_dict()
    from xvolution.training.api import predict

    print(predict(values.pop("model"), values.pop("pictures"), **values))
