"""Weights that `long` and `distil` start from: of the work folder, or of a shipped pipeline."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from svg2.runs.distributed import processes
from svg2.training.data import TrainingError
from svg2.training.parcel import unpack


@dataclass(frozen=True)
class Starts:
    """Weights to start from, each a checkpoint of the folder `work` or a shipped pipeline.

    Attributes:
        pretrained: folder of the pipeline to go on from; None of a training that began anew.
    """

    work: Path
    pretrained: Path | None

    def unpack_teacher(self) -> None:
        """Unpack the teacher of the student to go on from, where there is nothing later.

        All processes call it, and wait for the first one.

        Raises:
            TrainingError: it is not there.
        """
        share, folder = processes(), self.pretrained
        later = (path.exists() for path in (self._dit, self._long, self._unpacked))
        if share.is_first and folder is not None and _is_student(folder) and not any(later):
            parcel = folder.with_name("long.zip")
            if not parcel.exists():
                raise TrainingError(
                    f"{folder} holds a student, whose guidance would count twice, and its teacher "
                    f"is not beside it as {parcel.name}: name the folder of its teacher with "
                    "--pretrained."
                )
            unpack(parcel, folder, self._unpacked)
        if share.world > 1:
            dist.barrier()

    @property
    def long(self) -> Path | None:
        """What `long` starts from; None where it is under way.

        Raises:
            TrainingError: there is nothing.
        """
        return None if self._long.exists() else self._unguided or made(self._dit, "dit")

    @property
    def teacher(self) -> Path:
        """What a student learns from.

        Raises:
            TrainingError: there is nothing.
        """
        return self._long if self._long.exists() else self._unguided or made(self._long, "long")

    @property
    def student(self) -> Path:
        """What a student starts from: the student shipped, or its teacher.

        Raises:
            TrainingError: there is nothing.
        """
        shipped = None if self._dit.exists() else self.pretrained
        return shipped if shipped is not None and _is_student(shipped) else self.teacher

    @property
    def _unguided(self) -> Path | None:
        """Weights without guidance in them that came with a pipeline; None of a training anew."""
        if self._dit.exists():
            return None
        return self._unpacked if self._unpacked.exists() else self.pretrained

    @property
    def _dit(self) -> Path:
        return self.work / "dit.pt"

    @property
    def _long(self) -> Path:
        return self.work / "long.pt"

    @property
    def _unpacked(self) -> Path:
        return self.work / "teacher.pt"


def made(path: Path, stage: str) -> Path:
    """`path`, the output of an earlier stage.

    Raises:
        TrainingError: it does not exist.
    """
    if not path.exists():
        raise TrainingError(f"{path} does not exist: run `{stage}` first.")
    return path


def _is_student(folder: Path) -> bool:
    """Whether the weights of a shipped pipeline have guidance in them."""
    lab = json.loads((folder / "lab.json").read_text())
    return bool(lab.get("guidance_scale", math.inf) <= 1)
