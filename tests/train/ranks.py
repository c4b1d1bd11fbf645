"""Runs a script as the ranks of a process group, in processes of their own."""

import os
from concurrent.futures import ThreadPoolExecutor

import torch
from forked import call_in_process, run_script


def run_ranks(script, world_size, folder, *more, timeout=280):
    """`script RANK WORLD_SIZE RENDEZVOUS RESULTS ...` for each rank; returns what rank 0 saved."""
    results = folder / "results.pt"
    with ThreadPoolExecutor(world_size) as waiting:
        ranks = [
            waiting.submit(
                call_in_process, run_script,
                [script, rank, world_size, folder / "rendezvous", results, *more],
                environment=os.environ | {"OMP_NUM_THREADS": "1", "LOCAL_RANK": str(rank)},
                timeout=timeout,
            )
            for rank in range(world_size)
        ]  # fmt: skip
        for rank in ranks:
            code, _, complaint = rank.result()
            assert code == 0, complaint[-3000:]
    return torch.load(results, weights_only=True)
