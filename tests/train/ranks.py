"""Runs a script as the ranks of a process group, in processes of their own."""

import os
import subprocess
import sys

import torch


def run_ranks(script, world_size, folder, *more, timeout=280):
    """`script RANK WORLD_SIZE RENDEZVOUS RESULTS ...` for each rank; returns what rank 0 saved."""
    results = folder / "results.pt"
    processes = [
        subprocess.Popen(
            [
                *map(str, (sys.executable, script, rank, world_size)),
                *map(str, (folder / "rendezvous", results, *more)),
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1", "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in range(world_size)
    ]
    try:
        for process in processes:
            _, complaint = process.communicate(timeout=timeout)
            assert process.returncode == 0, complaint.decode()[-3000:]
    finally:
        for process in processes:
            process.kill()
    return torch.load(results, weights_only=True)
