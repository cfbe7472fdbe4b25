"""The evaluations of a run: which splits are due, their records, and their answers on disk."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import xxhash

from megatune.config import Run
from megatune.data.prepared import PreparedSet
from megatune.engine.base import Engine
from megatune.engine.world import World
from megatune.evaluate.decoding import Decoding
from megatune.evaluate.exam import Exam, Marking, Result, set_exam, take_exam
from megatune.files import write_text_atomic
from megatune.launch.run_folder import RunFolder
from megatune.report.metrics import read_metrics
from megatune.report.records import EvalRecord
from megatune.report.tables import to_json
from megatune.tasks import TaskOptions
from megatune.train.inputs import Inputs
from megatune.train.reporting import Reporter
from megatune.units import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def marking_of(run: Run, options: TaskOptions, rows_at_once: int) -> Marking:
    """How the run file wants answers found and scored."""
    evaluate = run.evaluate
    return Marking(
        task=run.data.task,
        options=options,
        decoding=Decoding(
            max_new_tokens=evaluate.max_new_tokens,
            num_beams=evaluate.num_beams,
            do_sample=evaluate.do_sample,
            temperature=evaluate.temperature,
            top_k=evaluate.top_k,
            top_p=evaluate.top_p,
            seed=run.train.seed,
        ),
        gather=evaluate.gather_weights,
        rows_at_once=rows_at_once,
        max_rows=evaluate.max_eval_rows,
        completion_only=run.data.completion_only_loss,
        truncation_side=run.data.truncation_side,
    )


def set_exams(inputs: Inputs, marking: Marking, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Exam]:
    """The exams of the held-out splits, by name. Raises DataError for rows that cannot be asked."""
    return {
        split: set_exam(split, prepared, inputs.questions.get(split), marking, tokenizer)
        for split, prepared in inputs.splits.items()
        if split != "train"
    }


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """Scores splits, and keeps what came out. Every method is collective."""

    engine: Engine
    marking: Marking
    exams: Mapping[str, Exam]
    sets: Mapping[str, PreparedSet]
    tokenizer: "PreTrainedTokenizerBase | None"
    """On the first rank."""
    micro_batch: int
    folder: RunFolder
    reporter: Reporter
    told: set[str] = field(default_factory=set)
    """Notices about the scores that were shown."""

    def asked(self, split: str) -> str | None:
        """A hash of what decides the scores of `split` beside the model; None where there is none.

        Its rows, and how they are asked and marked: scores under other hashes cannot be compared.
        """
        if split not in self.exams:
            return None
        marking = asdict(replace(self.marking, gather="auto", rows_at_once=1))
        found = json.dumps([self.sets[split].fingerprint, marking], sort_keys=True)
        return xxhash.xxh3_64_hexdigest(found.encode())

    def is_scored(self, split: str, step: int) -> bool:
        """Whether metrics.jsonl has the scores of `split` at `step`, of what is asked now. Collective."""
        world: World = self.engine.world
        found = world.first_rank(
            lambda: [
                entry.get("asked")
                for entry in read_metrics(self.folder.metrics)
                if (entry["event"], entry.get("step"), entry.get("split")) == ("eval", step, split)
            ]
        )
        return None in found or self.asked(split) in found

    def score(self, split: str, step: int, is_given_up: Callable[[], bool]) -> tuple[Result, float] | None:
        """The scores of the model on `split` and the seconds they took; None when given up."""
        started = time.monotonic()
        result = take_exam(
            self.engine,
            self.exams[split],
            self.sets[split],
            self.marking,
            self.tokenizer,
            micro_batch=self.micro_batch,
            is_given_up=is_given_up,
        )
        if result is None:
            return None
        path = self.engine.world.first_rank(lambda: self._keep_answers(result, step))
        seconds = time.monotonic() - started
        metrics = dict(result.metrics)
        self.reporter.write(
            EvalRecord(
                step=step,
                split=split,
                loss=result.loss,
                perplexity=metrics.pop("perplexity", None),
                target_tokens=result.target_tokens,
                seconds=seconds,
                metrics=metrics,
                intervals=result.intervals,
                answers=path,
                asked=self.asked(split),
                rows=result.num_rows,
                loss_rows=result.loss_rows,
                notices=tuple(result.notices),
            )
        )
        self.reporter.note(_line(result, step, seconds))
        self._tell_once(split, result.notices)
        return result, seconds

    def _tell_once(self, split: str, notices: Sequence[str]) -> None:
        """The same rows are scored again and again: what is to be known of them is said the first time."""
        for notice in (f"note: {split}: {one}" for one in notices):
            if notice not in self.told:
                self.told.add(notice)
                self.reporter.note(notice)

    def _keep_answers(self, result: Result, step: int) -> str | None:
        """Write gold and answers of all rows, and the reports that are no single number."""
        if not result.answers:
            return None
        folder = self.folder.answers(step)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{result.split}.jsonl"
        write_text_atomic(path, "".join(_json_line(line) for line in result.answers))
        scores = {"metrics": result.metrics, "intervals": result.intervals, **result.details}
        write_text_atomic(folder / f"{result.split}.scores.json", to_json(scores) + "\n")
        return str(path)


def _json_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _line(result: Result, step: int, seconds: float) -> str:
    shown = {"loss": result.loss, **result.metrics}
    values = " ".join(f"{name} {'n/a' if value is None else f'{value:.4g}'}" for name, value in shown.items())
    return f"eval step {step} {result.split}: {values} ({counted(result.num_rows, 'row')}, {seconds:.1f} s)"
