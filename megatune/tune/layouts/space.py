"""The candidates of a tune: the planner's shortlist of layouts, times the values of every other knob."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from megatune.config import resolve_batch
from megatune.errors import ConfigError, ModelError, PlanError
from megatune.plan.assess import Assessment, Question, assess
from megatune.plan.ds_config import make_ds_config
from megatune.plan.layout import Layout
from megatune.plan.question import layout_of
from megatune.plan.search import search
from megatune.plan.validity import refuse_untrainable
from megatune.tune.layouts.candidates import Candidate, Space, Tuned, Values
from megatune.tune.layouts.forecast import planned_seconds
from megatune.tune.layouts.knobs import RANKS, SIDE_KNOBS, Knob, Surroundings, layout_values

MOST_CANDIDATES = 5000


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the user says about knobs."""

    tried: Mapping[str, Sequence[str]]
    """--try: only these values (and the run's own, for the reference)."""
    fixed: Sequence[str] = ()
    """--fix: keep the run's own."""
    shortlist: int = 24
    """Layouts of the planner that are looked at."""


def build_space(tuned: Tuned, choice: Choice) -> Space:
    """All candidates, each planned; those that the run file's own rules refuse are left out with the reason.

    Raises ModelError and PlanError for what cannot be planned, ConfigError for a run that cannot be.
    """
    left_out: list[str] = []
    own = _reference(tuned)
    others = [one for one in _others(tuned, choice, own, left_out) if one.values != own.values]
    found = [own, *others]
    if len(found) > MOST_CANDIDATES:
        raise ConfigError(
            [
                f"the knobs make {len(found)} candidates, more than {MOST_CANDIDATES}; --fix some of them, or give "
                "fewer values with --try."
            ],
            source="megatune tune",
        )
    numbered = tuple(replace(one, number=number) for number, one in enumerate(found))
    varied = {
        key: values
        for key in own.values
        if len(values := list(dict.fromkeys(one.values[key] for one in numbered))) > 1
    }
    return Space(candidates=numbered, varied=varied, left_out=left_out)


def side_values_of(tuned: Tuned, choice: Choice) -> dict[str, list[str]]:
    """The values of every knob that is no part of a layout, the run's own first."""
    around = _surroundings(tuned)
    found = {}
    for knob in SIDE_KNOBS:
        own = str(tuned.machine.ranks_per_node) if knob.key == RANKS else knob.own_value(around)
        if knob.key in choice.tried:
            found[knob.key] = list(dict.fromkeys(choice.tried[knob.key]))
        elif knob.key in choice.fixed or knob.key == RANKS:
            found[knob.key] = [own]
        else:
            found[knob.key] = knob.side_values(around)
    return found


def _surroundings(tuned: Tuned) -> Surroundings:
    run = tuned.load()
    question = tuned.question({})
    return Surroundings(
        run=run,
        policy=tuned.policy(run),
        model=question.work.model,
        on_cpu=question.place.on_cpu,
    )


def _own_sides(tuned: Tuned) -> Values:
    around = _surroundings(tuned)
    return {
        knob.key: str(tuned.machine.ranks_per_node) if knob.key == RANKS else knob.own_value(around)
        for knob in SIDE_KNOBS
    }


def _reference(tuned: Tuned) -> Candidate:
    """The run's own layout. `auto` checkpointing is off, as in training."""
    question = tuned.question({})
    layout = layout_of(tuned.load(), tuned.machine.num_devices)
    refuse_untrainable(question, layout)
    judged = assess(question, layout)
    return _candidate(question, judged, _own_sides(tuned))


def _others(tuned: Tuned, choice: Choice, own: Candidate, left_out: list[str]) -> Iterator[Candidate]:
    sides = side_values_of(tuned, choice)
    seen: set[frozenset[tuple[str, str]]] = set()
    for ranks in sides.pop(RANKS):
        base = {RANKS: ranks}
        layouts = _shortlist(tuned, choice, own, base, left_out)
        for combination in itertools.product(*sides.values()):
            values = {**base, **dict(zip(sides, combination, strict=True))}
            usable = _accepted(tuned, values, layouts, left_out)
            if not usable:
                continue
            question = tuned.question({**values, **layout_values(usable[0])})
            for layout in usable:
                judged = assess(question, layout)
                candidate = _candidate(question, judged, _with_effect(values, layout, sides))
                told = frozenset(candidate.values.items())
                if judged.ledger.fits and told not in seen:
                    seen.add(told)
                    yield candidate


def _with_effect(values: Values, layout: Layout, sides: Mapping[str, Sequence[str]]) -> Values:
    """Knobs without an effect on this layout at their first value, so that none is tried twice."""
    return {
        key: sides[key][0] if key in sides and not _knob(key).has_effect(layout) else text
        for key, text in values.items()
    }


def _knob(key: str) -> Knob:
    return next(knob for knob in SIDE_KNOBS if knob.key == key)


def _candidate(question: Question, judged: Assessment, sides: Values) -> Candidate:
    return Candidate(
        number=0,
        values={**layout_values(judged.layout), **sides},
        layout=judged.layout,
        planned_s=planned_seconds(question, judged.layout),
        planned_bytes=judged.ledger.device_total,
    )


def _shortlist(
    tuned: Tuned, choice: Choice, own: Candidate, base: Values, left_out: list[str]
) -> list[Layout]:
    """The planner's layouts: the best of each kind first, then the next best ones."""
    question = tuned.question(base)
    fitting = [one.layout for one in search(question).fitting]
    left_out += _never_there(fitting, choice)
    asked = [layout for layout in fitting if _is_wanted(layout, choice, own)]
    usable = _accepted(tuned, base, asked, left_out)
    ordered = sorted(usable, key=lambda layout: planned_seconds(question, layout) or 0.0)
    first: dict[tuple[object, ...], Layout] = {}
    for layout in ordered:
        first.setdefault(_kind(layout), layout)
    best_of_kinds = list(first.values())
    rest = [layout for layout in ordered if layout not in best_of_kinds]
    kept = [*best_of_kinds, *rest][: choice.shortlist]
    if len(kept) < len(ordered):
        left_out.append(
            f"{len(ordered) - len(kept)} layouts that the planner expects to be slower than the best of their kind "
            f"(--shortlist {choice.shortlist})."
        )
    return kept


def _never_there(fitting: Sequence[Layout], choice: Choice) -> list[str]:
    """Which values that were asked for are those of no layout that fits."""
    values = [layout_values(layout) for layout in fitting]
    known = set(values[0]) if values else set()
    return [
        f"{key}={text}: no layout with it fits the model and these machines (`megatune plan` says why)."
        for key, texts in choice.tried.items()
        if key in known
        for text in texts
        if all(one[key] != text for one in values)
    ]


def _kind(layout: Layout) -> tuple[object, ...]:
    return (layout.tensor_parallel, layout.zero_stage, layout.offload, layout.gradient_checkpointing)


def _is_wanted(layout: Layout, choice: Choice, own: Candidate) -> bool:
    values = layout_values(layout)
    for key, text in values.items():
        if key in choice.tried and text not in choice.tried[key]:
            return False
        if key in choice.fixed and text != own.values[key]:
            return False
    return True


def _accepted(tuned: Tuned, base: Values, layouts: Sequence[Layout], left_out: list[str]) -> list[Layout]:
    """Layouts that the run file's rules allow beside the values of side knobs, which may exclude them or each other.

    Asked once for each kind: what is refused does not hang on the batch.
    """
    reasons: dict[tuple[object, ...], str | None] = {}
    for layout in layouts:
        if _kind(layout) not in reasons:
            reasons[_kind(layout)] = _refusal(tuned, {**base, **layout_values(layout)}, layout)
    told = dict.fromkeys(reason for reason in reasons.values() if reason is not None)
    left_out += [reason for reason in told if reason not in left_out]
    return [layout for layout in layouts if reasons[_kind(layout)] is None]


def _refusal(tuned: Tuned, values: Values, layout: Layout) -> str | None:
    try:
        run = tuned.load(values)
        batch = resolve_batch(run, layout.data_parallel)
        make_ds_config(run, batch, tuned.policy(run, values))
    except (ConfigError, ModelError, PlanError) as error:
        return str(error)
    return None
