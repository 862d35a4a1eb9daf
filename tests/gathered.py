"""One of the processes of an evaluation; `test_gathering.py` starts them as a launcher does.

    python tests/gathered.py IMAGES OUT

Gathers the statistics of IMAGES in chunks beside OUT, which the first process writes.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from extractors import small
from shortflow import runs
from shortflow.data.stored import open_images
from shortflow.evaluate import Plan, tally
from shortflow.train.engine import PATIENCE

ROWS, UNIT = 4, 11  # many small chunks


def main(images: Path, out: Path) -> None:
    torch.set_num_threads(1)
    tally._ROWS, tally._UNIT = ROWS, UNIT
    opened = open_images(images)
    with runs.processes() as world:
        assert dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu")).options._timeout == PATIENCE
        found = runs.gather(opened, small(), Plan(n=opened.count), beside=out, world=world)
    assert (found is None) == (world.rank > 0)
    if found is not None:
        save_file(found.tensors(), out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
