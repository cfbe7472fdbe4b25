"""What was planned for a start, as a record of its metrics."""

from megatune.launch.planned_run import PlannedRun
from megatune.plan.answer import phase_values
from megatune.plan.layout_keys import value_of
from megatune.report.records import PlanRecord


def plan_record(planned: PlannedRun) -> PlanRecord:
    """The estimate that the report puts beside what was measured."""
    choice, judged = planned.choice, planned.judged
    chosen = {key: value_of(planned.loaded.run, key) for key in choice.keys} if choice else {}
    if judged is None:
        return PlanRecord(chosen=chosen, why=planned.why_not)
    return PlanRecord(
        layout=judged.layout.to_json(),
        device_bytes=judged.ledger.device,
        host_bytes=judged.ledger.host,
        disk_bytes=judged.ledger.disk_bytes,
        device_limit_bytes=judged.ledger.device_limit,
        step_seconds=judged.step_s,
        seconds_by_phase=phase_values(judged.phases),
        chosen=chosen,
        why=choice.why if choice else None,
    )
