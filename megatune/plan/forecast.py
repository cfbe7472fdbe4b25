"""How long the whole run takes, in jobs, GPU-hours, energy and money. What nobody said is None."""

import math
from dataclasses import dataclass

from megatune.plan.assess import Assessment, Question

STEPS_NEED = (
    "train.max_steps, or prepared data (megatune prepare with this run file), which are recognised where model and "
    "data are files here"
)
"""What tells how many steps a run has."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Figures of the whole run."""

    num_steps: int | None
    total_s: float | None
    num_jobs: int | None
    """Jobs of the time limit, each stopping early enough to save."""
    gpu_hours: float | None
    energy_kwh: float | None
    """At the devices' rated power, hosts not counted: no more than this."""
    cost: float | None


def forecast(
    question: Question,
    judged: Assessment,
    *,
    num_steps: int | None,
    limit_s: int | None,
    reserve_s: int,
    price_per_gpu_hour: float | None,
) -> Forecast:
    """The run of `num_steps` steps in jobs of `limit_s` seconds that stop `reserve_s` before their end."""
    if num_steps is None or judged.step_s is None:
        return Forecast(
            num_steps=num_steps, total_s=None, num_jobs=None, gpu_hours=None, energy_kwh=None, cost=None
        )
    total_s = num_steps * judged.step_s
    device = question.accelerator
    hours = None if device is None else total_s / 3600 * question.num_devices
    usable_s = None if limit_s is None else limit_s - reserve_s
    return Forecast(
        num_steps=num_steps,
        total_s=total_s,
        num_jobs=math.ceil(total_s / usable_s) if usable_s is not None and usable_s > 0 else None,
        gpu_hours=hours,
        energy_kwh=None if device is None or hours is None else hours * device.power_w / 1000,
        cost=None if price_per_gpu_hour is None or hours is None else hours * price_per_gpu_hour,
    )
