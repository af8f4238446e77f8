"""The jobs of a mixture: of each row, one multiplication for each expert that it has chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from specdec.runtimes.mlx.kernels import Constant


@dataclass(frozen=True, slots=True)
class Jobs:
    """Which expert each job multiplies by.

    Attributes:
        chosen: int32 (rows * used,): the expert of each job, -1 for those not kept and rows that are not in use.
        kept: int32 (rows,): how many of its experts a row keeps.
        count: of jobs.
        used: experts of a row.
        experts: of the mixture.
        by_job: every job has an activation of its own, not only every row.
    """

    chosen: Any
    kept: Any
    count: int
    used: int
    experts: int
    by_job: bool = False

    @property
    def constants(self) -> dict[str, Constant]:
        """Constants of `job.metal` and `job.cu`."""
        return {"EXPERTS": self.experts, "USED": self.used, "JOBS": self.count, "BY_JOB": self.by_job}


_NO_JOBS: dict[str, Constant] = {"EXPERTS": 0, "USED": 1, "JOBS": 1, "BY_JOB": False}


def job_constants(jobs: Jobs | None) -> dict[str, Constant]:
    """What kernels that multiply know of the jobs of a mixture."""
    return dict(_NO_JOBS) if jobs is None else jobs.constants


def job_inputs(jobs: Jobs | None) -> dict[str, Any]:
    """What those kernels read."""
    return {} if jobs is None else {"chosen": jobs.chosen}
