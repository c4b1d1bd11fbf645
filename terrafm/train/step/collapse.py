"""Collapse of self-distillation: seen early, named, with what to change.

A collapsed teacher gives every image the same target, and the loss has nothing left to teach.
It shows in numbers that a run writes anyway, against ln K, the entropy of the uniform
distribution over K prototypes, and in the effective rank of the teacher's features. A partial
collapse shows in the perplexity P of the teacher's mean distribution: with H, its entropy per
image, ln P - H is how much, in nats, a target tells about its image.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor

from terrafm.train.advice import ALARMS as ALARMS
from terrafm.train.step.schedules import Schedules

# Healthy teachers lie well between the bounds (0.2 to 0.5 ln K in the tests' golden curve, and
# DINO's loss leaves 0.98 ln K within its warm-up); a collapsed one comes as near as rounding
# allows. 2 % leaves room for neither to be taken for the other.
_NEAR = 0.02
# The effective rank of a healthy run moves by some per cent from line to line, and falls while
# the teacher slows down: in the golden recipe over 150 steps from 20 to 13. A run on real pixels
# that unlearned fell from 20 to 8.
_FALLEN = 1 / 2
# That run's teacher used 43 of 1,024 prototypes after 100 steps, 24 after 150 and 15 at its end.
# No archive worth a pretraining has fewer kinds of ground than this, however many prototypes
# there are.
_FEW_SHARE, _FEW = 0.05, 64
_ONE_PROTOTYPE = 2.0
# Perplexity falls in every run while the teacher sharpens, and information rises meanwhile: only
# where both fall, images that had targets of their own have lost them.
_PERPLEXITY_FALLEN = 1 / 3
_INFORMATION_LOST = math.log(2)
# All features along one direction have rank 1, with the noise of single images below 2.
_ONE_DIRECTION = 2.0
# One line is one batch: a sign counts when it holds for so many lines in a row, and is over
# when it was absent for as many.
_PATIENCE = 3
# Centers start at 0 and hold the logits' mean to 0.5 % after 50 steps at a momentum of 0.9;
# before, entropies speak of the missing centers.
_CENTERS_SETTLE = 50

_SAMPLE_ROWS = 256


def effective_rank(features: Tensor) -> float | None:
    """Exp of the entropy of the normalised singular values (Roy and Vetterli, 2007).

    Features are not centered: were all equal, centering would leave noise of full rank.

    Args:
        features: (n, D).

    Returns:
        1 (one direction) to min(n, D); None where a value is not finite or all are 0.
    """
    rows = features.detach().double().cpu()
    if not bool(torch.isfinite(rows).all()):
        return None
    # Through the smaller Gram matrix: its eigenvalues are the squares.
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    total = float(singular.sum())
    if not total:
        return None
    share = singular / total
    return math.exp(-float(torch.special.xlogy(share, share).sum()))


class FeatureSample:
    """The newest features of the teacher, a bounded number, on the device they come from.

    Args:
        capacity: rows kept. Their effective rank costs about 20 ms on a CPU core for Base.
    """

    def __init__(self, capacity: int = _SAMPLE_ROWS) -> None:
        self._capacity = capacity
        self._rows: Tensor | None = None
        self._next = self._filled = 0

    def add(self, features: Tensor) -> None:
        """Takes in (n, D) features, of which the last `capacity` are kept; waits for nothing."""
        features = features.detach()[-self._capacity :].float()
        count = len(features)
        if self._rows is None:
            self._rows = features.new_zeros((self._capacity, features.shape[1]))
        first = min(count, self._capacity - self._next)
        self._rows[self._next : self._next + first] = features[:first]
        self._rows[: count - first] = features[first:]
        self._next = (self._next + count) % self._capacity
        self._filled = min(self._filled + count, self._capacity)

    def effective_rank(self) -> float | None:
        """Of the rows held; None where there are fewer than two, or they are not finite."""
        if self._rows is None or self._filled < 2:
            return None
        return effective_rank(self._rows[: self._filled])


class CollapseAlarm:
    """Judges the lines of a run, one after the other.

    Args:
        num_prototypes: K.
        warmup_steps: steps before which nothing is judged.
    """

    def __init__(self, num_prototypes: int, warmup_steps: int) -> None:
        self._uniform = math.log(num_prototypes)
        self._warmup = warmup_steps
        self._in_a_row = dict.fromkeys(ALARMS, 0)
        self._active: set[str] = set()
        self._ranks: deque[float] = deque(maxlen=_PATIENCE)
        self._best_rank = 0.0
        self._few = min(_FEW_SHARE * num_prototypes, _FEW)
        # Perplexity and information of the newest lines.
        self._uses: deque[tuple[float, float]] = deque(maxlen=_PATIENCE)
        self._best_use = (0.0, 0.0)

    @classmethod
    def of(cls, num_prototypes: int, schedules: Schedules) -> CollapseAlarm:
        """With the run's warm-up: rate and temperature still rise, prototypes may be frozen."""
        return cls(
            num_prototypes,
            max(schedules.warmup_steps, schedules.frozen_steps, _CENTERS_SETTLE),
        )

    def judge(self, line: Mapping[str, Any]) -> dict[str, list[str]]:
        """Names of the alarms that hold at a line of metrics.jsonl.

        Args:
            line: with `step`, and `loss`, `teacher_entropy`, `effective_rank`,
                `prototype_perplexity` where it has them.

        Returns:
            {"alarm": names}, or nothing where all is well.
        """
        if line["step"] <= self._warmup or not self._uniform:
            return {}
        signs = self._signs(line)
        for name in ALARMS:
            # Counts lines that speak against the present state.
            changed = (name in signs) != (name in self._active)
            self._in_a_row[name] = self._in_a_row[name] + 1 if changed else 0
            if self._in_a_row[name] >= _PATIENCE:
                self._active ^= {name}
                self._in_a_row[name] = 0
        return {"alarm": sorted(self._active)} if self._active else {}

    def _signs(self, line: Mapping[str, Any]) -> set[str]:
        signs = set()
        entropy, loss = line.get("teacher_entropy"), line.get("loss")
        if entropy is not None and entropy >= (1 - _NEAR) * self._uniform:
            signs.add("uniform_teacher")
        perplexity = line.get("prototype_perplexity")
        # A sure teacher may well tell images apart: its mean says whether it does.
        one = perplexity is None or perplexity <= _ONE_PROTOTYPE
        if one and entropy is not None and entropy <= _NEAR * self._uniform:
            signs.add("one_prototype")
        if loss is not None and loss >= (1 - _NEAR) * self._uniform:
            signs.add("loss_at_chance")
        rank = line.get("effective_rank")
        if rank is not None:
            self._ranks.append(rank)
            typical = median(self._ranks)
            if len(self._ranks) == _PATIENCE:
                self._best_rank = max(self._best_rank, typical)
            if typical < max(_FALLEN * self._best_rank, _ONE_DIRECTION):
                signs.add("falling_rank")
        if perplexity is not None and entropy is not None:
            signs |= self._signs_of_use(perplexity, entropy)
        return signs

    def _signs_of_use(self, perplexity: float, entropy: float) -> set[str]:
        signs = set()
        if _ONE_PROTOTYPE < perplexity <= self._few:
            signs.add("few_prototypes")
        self._uses.append((perplexity, math.log(perplexity) - entropy))
        typical = [median(values) for values in zip(*self._uses, strict=True)]
        best_perplexity, best_information = self._best_use
        if len(self._uses) == _PATIENCE:
            best_perplexity = max(best_perplexity, typical[0])
            best_information = max(best_information, typical[1])
            self._best_use = (best_perplexity, best_information)
        if (
            typical[0] < _PERPLEXITY_FALLEN * best_perplexity
            and typical[1] < best_information - _INFORMATION_LOST
        ):
            signs.add("falling_perplexity")
        return signs
