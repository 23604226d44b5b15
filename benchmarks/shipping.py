"""The table of `xvolution deploy --to all --int8` of a trained network, as a record.

    OMP_NUM_THREADS=1 python -m benchmarks.shipping CHECKPOINT --data DATA --output results/shipping/resnet18.json

For an idle machine. The files are written to a temporary folder.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.record import write_record
from xvolution.training import load_model
from xvolution.training.shipping import ALL, deploy_to


def main(arguments: Sequence[str] | None = None) -> None:
    """Write, run, measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="of a classifier, in its training form")
    parser.add_argument("--data", required=True, help="what it was trained on")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--images", type=int, default=341, help="of the validation part, whose predictions are compared"
    )
    parser.add_argument("--rounds", type=int, default=50, help="samples of each latency")
    options = parser.parse_args(arguments)
    _, metadata = load_model(options.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        found = deploy_to(
            options.checkpoint,
            [ALL],
            Path(folder) / "network",
            data=options.data,
            images=options.images,
            int8=True,
            threads=1,
            rounds=options.rounds,
            progress=partial(print, flush=True),
        )
    table = replace(found, files=[replace(file, path=Path(file.path.name)) for file in found.files])
    print(table)
    settings = {"images": options.images, "rounds": options.rounds}
    write_record(options.output, {"network": metadata.to_dict(), **settings, "table": table.to_dict()})


if __name__ == "__main__":
    main()
