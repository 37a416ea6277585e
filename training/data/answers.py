"""What a teacher answered to the training images, kept in a file: distillation without the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ..core.rng import KeyedRng, Rng


@dataclass(frozen=True)
class Answers:
    """What a network that is not there answered to the training images, each as it is and mirrored.

    Attributes:
        logits: [2,N,K], as it is first.
        labels: int64 [N], the images' own, by which they are known again.
    """

    logits: Tensor
    labels: Tensor

    @classmethod
    def load(cls, path: Path) -> Answers:
        """From an .npz with both arrays; FileNotFoundError, or ValueError where it holds something else."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                answers = cls(torch.from_numpy(stored["logits"]), torch.from_numpy(stored["labels"]).long())
        except (KeyError, TypeError, ValueError, BadZipFile) as error:
            raise ValueError(f"{path} holds no answers, the arrays logits and labels: {error}") from error
        shape = answers.logits.shape
        if answers.logits.ndim != 3 or shape[0] != 2 or answers.labels.shape != shape[1:2]:
            raise ValueError(f"{path}: logits are [2,N,K] and labels [N], not {[*shape]} and {[*answers.labels.shape]}")
        return answers

    def to(self, y: Tensor, rng: Rng) -> Tensor:
        """Logits [n,K], float32, to the images of a step with labels y [n], mirrored or not as they are there.

        Raises:
            ValueError: the random numbers know no images, or these have other labels.
        """
        if not isinstance(rng, KeyedRng):
            raise ValueError("answers belong to numbered images: this needs a KeyedRng")
        index = rng.index.to(self.labels.device)
        if int(index.max()) >= len(self.labels) or not torch.equal(self.labels[index], y.to(self.labels.device)):
            raise ValueError("the answers are of other images than these: their labels differ")
        return self.logits[rng.mirrored().long().to(index.device), index].float().to(y.device)
