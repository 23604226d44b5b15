"""Two processes take the step that one process takes: DDP, FSDP2, and synchronized batch norms."""

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from tests.core.cases import CASES
from tests.core.execution import CAPTURED_FORMS, TRAINING, images, layouts, network, operator
from xvolution import reparameterize

pytestmark = pytest.mark.slow


def split_data_parallel(model):
    return nn.parallel.DistributedDataParallel(model, find_unused_parameters=False)


def split_fully(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for part in (*model, model):
        fully_shard(part, mesh=mesh)
    return model


def blocks(branch, variant, form):
    """Two blocks in eval mode: batch statistics of half a batch are not those of the whole."""
    first = operator(branch, variant, form)
    return nn.Sequential(first, nn.Conv2d(8, 4, 1))


def step(model, x):
    """Two steps: the second would hang or fail if a parameter of the first had been left without a gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model


def compare(rank: int, rendezvous: str, way: str) -> None:
    """One of two processes; raises where its weights differ from those of a single process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    x = images(4, channels=4)
    split = {"ddp": split_data_parallel, "fsdp": split_fully}[way]
    for case in CAPTURED_FORMS:
        expected = step(blocks(*case), x)
        actual = step(split(blocks(*case)), x.chunk(2)[rank])
        for after, parameter in zip(actual.parameters(), expected.parameters(), strict=True):
            whole = after.full_tensor() if way == "fsdp" else after
            torch.testing.assert_close(whole, parameter, rtol=1e-4, atol=1e-5, msg=f"{case} {way}")
    # Neither process may take its group apart while the other still communicates.
    dist.barrier()
    dist.destroy_process_group()
    # Threads of gloo that fully_shard leaves would abort the interpreter's own way out.
    os._exit(0)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file needs a POSIX system")
def test_two_processes_step_as_one(way: str, tmp_path: Path) -> None:
    mp.spawn(compare, (str(tmp_path / "rendezvous"), way), nprocs=2)


@pytest.mark.parametrize("branch", CASES)
def test_synchronized_norms_fold(branch: str) -> None:
    x = images().double()
    model = network(branch, "default", TRAINING).double()
    expected = model(x)
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for layout in layouts(branch, "default"):
        deployed = reparameterize(synchronized, x, layout=layout, fold_norms=True)
        torch.testing.assert_close(deployed(x), expected, rtol=1e-10, atol=1e-10)
        assert not any(isinstance(module, nn.SyncBatchNorm) for module in deployed.modules())
