"""A queue of experiments, each sized for a few minutes of one GPU; README.md says what each asks and how long it takes.

python -m experiments.gpu b --packs experiments/gpu/packs            # the next undone part of item b, to $OUT
python -m experiments.gpu b --tiny --output /tmp/trial               # a trial on a CPU, on made-up pictures
python -m experiments.gpu summary results/gpu/b.json                 # the table with intervals
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

_BEGAN = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("item", help="a, b, c, d, e or f; or summary, with files")
    parser.add_argument("files", nargs="*", type=Path, help="of summary: what items wrote")
    parser.add_argument("--packs", type=Path, help="folder with the packs; a trial without it makes pictures up")
    parser.add_argument(
        "--output", type=Path, default=os.environ.get("OUT"), help="folder of the JSON; $OUT when not given"
    )
    parser.add_argument(
        "--earlier", type=Path, nargs="*", default=[Path("results/gpu")], help="folders of earlier calls' JSON"
    )
    parser.add_argument("--tiny", action="store_true", help="a trial of less than a minute on a CPU")
    parser.add_argument(
        "--workers", type=int, default=3, help="trainings at once; 0: one after the other in this process"
    )
    parser.add_argument("--minutes", type=float, default=9.5, help="nothing is started that would end later than this")
    options = parser.parse_args()
    if options.item == "summary":
        from experiments.gpu.summary import summary

        print(summary(options.files))
        return
    # Imported here so that --help and summary answer at once.
    from experiments.gpu.items import ITEMS
    from experiments.gpu.place import Place
    from experiments.gpu.store import Store

    if options.item not in ITEMS:
        parser.error(f"there is no item {options.item!r}; there are {', '.join(ITEMS)}, and summary")
    if options.output is None:
        parser.error("say where the JSON goes, by --output or the environment variable OUT")
    if options.packs is None and not options.tiny and options.item != "a":
        parser.error("--packs is missing; give the folder that python -m experiments.gpu.pack wrote")
    item = ITEMS[options.item].tiny() if options.tiny else ITEMS[options.item]
    name = f"{options.item}-tiny" if options.tiny else options.item
    store = Store(name, Path(options.output), item.settings(), () if options.tiny else options.earlier)
    place = Place(options.packs, options.tiny, 0 if options.tiny else options.workers, _BEGAN + 60 * options.minutes)
    done = item.run(store, place)
    print(
        f"{store.path}: {'all is done' if done else 'more is to be done'} after {time.monotonic() - _BEGAN:.0f} s",
        flush=True,
    )
    sys.exit(0 if done else 3)


if __name__ == "__main__":
    main()
