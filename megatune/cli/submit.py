"""`megatune submit`."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from megatune.cli.plan_steps import steps_of_run
from megatune.cli.submit_plan import plan_lines
from megatune.errors import ConfigError, PlanError, SubmitError
from megatune.launch.measurements import measured_for
from megatune.launch.run_folder import RunFolder
from megatune.launch.slurm.array import load_array, load_one, load_sweep
from megatune.launch.slurm.chain import Chain, Eta, choose_chain, eta_of, standing_of
from megatune.launch.slurm.command import Call, call
from megatune.launch.slurm.lint import Finding, LintFacts, lint_script
from megatune.launch.slurm.preview import Preview, preview
from megatune.launch.slurm.request import JobRequest, RunToSubmit, build_request, join_requests
from megatune.launch.slurm.script import render_script
from megatune.launch.slurm.site import SiteProfile, load_site
from megatune.launch.slurm.submit import (
    HandedIn,
    active_jobs,
    as_mapping,
    log_path,
    refuse_active,
    submit_jobs,
    without_requeue,
)
from megatune.report.standing import Standing
from megatune.report.tables import show

_SOURCE = "megatune submit"


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """What the command line says beside the run file."""

    dry_run: bool = False
    lint: bool = False
    chain: str | None = None
    eta: str | None = None
    array: tuple[Path, ...] = ()
    sweep: tuple[str, ...] = ()
    as_json: bool = False


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Everything that is decided before Slurm is asked."""

    runs: list[RunToSubmit]
    request: JobRequest
    script: str
    findings: list[Finding]
    preview: Preview
    """Of the first run."""
    refusal: PlanError | None
    """Why a run's layout has no room on the GPUs of the site."""
    chain: Chain | None


def submit_run(
    run_file: Path | None, overrides: list[str], options: SubmitOptions, *, call: Call = call
) -> int:
    """Submit, or show what would be submitted. Returns 1 when the lint finds an error, else 0.

    Raises PlanError, after showing what was asked for, when a layout does not fit the site's GPUs.
    """
    submission = prepare_submission(run_file, overrides, options)
    has_errors = any(finding.severity == "error" for finding in submission.findings)
    if options.lint:
        show(_lint_answer(submission), *_findings(submission), as_json=options.as_json)
        _refuse(submission)
        return int(has_errors)
    if options.dry_run:
        show(_answer(submission, []), *_dry_run(submission), as_json=options.as_json)
        _refuse(submission)
        return int(has_errors)
    _refuse(submission)
    for finding in submission.findings:
        _tell(str(finding))
    if has_errors:
        raise SubmitError("the job was not submitted: see the errors above.")
    jobs = _hand_in(submission, call)
    show(_answer(submission, jobs), *_handed_in(submission, jobs), as_json=options.as_json)
    return 0


def prepare_submission(run_file: Path | None, overrides: list[str], options: SubmitOptions) -> Submission:
    """Resolve the run or the runs, render the script and check it. Asks nothing of Slurm."""
    runs = _load(run_file, overrides, options)
    for notice in dict.fromkeys(notice for run in runs for notice in run.loaded.notices):
        _tell(notice)
    request = _request(runs, options.array[0] if options.array else run_file or Path())
    known = standing_of(RunFolder(runs[0].folder).metrics) if len(runs) == 1 else Standing()
    seen = [_seen(run, request, known) for run in runs]
    # The runs of an array are jobs of their own: their first one's forecast says nothing of the others.
    planned_s = seen[0].left_s(known.step or 0) if len(runs) == 1 else None
    eta = eta_of(options.eta, known, planned_s)
    chain = None
    if options.chain is not None:
        chain = choose_chain(
            options.chain, eta=eta, limit_s=request.time_limit_s, signal_delay_s=request.signal_delay_s
        )
        request = without_requeue(request)
    script = render_script(request)
    # One job of a chain need not hold the whole run.
    facts = _facts(runs[0], request, known, None if chain else eta, seen[0])
    return Submission(
        runs=runs,
        request=request,
        script=script,
        findings=lint_script(script, facts),
        preview=seen[0],
        refusal=next((error for one in seen if (error := one.refusal())), None),
        chain=chain,
    )


def _load(run_file: Path | None, overrides: list[str], options: SubmitOptions) -> list[RunToSubmit]:
    if options.array:
        if options.sweep:
            raise ConfigError(["give --array or --sweep, not both."], source=_SOURCE)
        # A shell that expands `--array runs/*.yaml` leaves all files but the first to stand for themselves.
        others = [*([] if run_file is None else [str(run_file)]), *overrides]
        files = [Path(text) for text in others if "=" not in text]
        runs = load_array([*options.array, *files], [text for text in others if "=" in text])
    elif run_file is None:
        raise ConfigError(["give a run file, or --array with several."], source=_SOURCE)
    elif options.sweep:
        runs = load_sweep(run_file, options.sweep, overrides)
    else:
        return [load_one(run_file, overrides)]
    if options.chain is not None:
        raise ConfigError(["--chain is for one run, not for an array."], source=_SOURCE)
    return runs


def _request(runs: list[RunToSubmit], run_file: Path) -> JobRequest:
    sites: dict[str | None, SiteProfile | None] = {None: None}
    requests, problems = [], list[str]()
    for run in runs:
        slurm = run.loaded.run.slurm
        name = slurm.site if slurm else None
        try:
            if name is not None and name not in sites:
                sites[name] = load_site(name, run_file=run_file)
            requests.append(build_request(run, sites[name], python=sys.executable, working_dir=Path.cwd()))
        except ConfigError as error:
            if error.source:  # the site profile's mistakes, not the run file's
                raise
            problems += error.problems if len(runs) == 1 else [f"{run.folder}: {error}"]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), source=str(run_file) if len(runs) == 1 else _SOURCE)
    return join_requests(requests)


def _seen(run: RunToSubmit, request: JobRequest, known: Standing) -> Preview:
    def count_steps(sequences: int) -> int | None:
        return steps_of_run(run.loaded.run, sequences) or known.total_steps

    device = request.gpus.name if request.gpus else "cpu"
    measured = measured_for(run.loaded.run, device=device)
    return preview(run.loaded, request, measured=measured, count_steps=count_steps)


def _facts(
    run: RunToSubmit, request: JobRequest, known: Standing, eta: Eta | None, seen: Preview
) -> LintFacts:
    saves = run.loaded.run.checkpoint.save_steps
    return LintFacts(
        world_size=request.num_ranks,
        tensor_parallel=run.loaded.run.parallel.tp_size,
        gpus_per_node=request.gpus.per_node if request.gpus else 0,
        host_bytes_per_node=seen.host_bytes_per_node,
        save_steps=saves,
        has_checkpoints=saves is not None,
        step_seconds=known.step_seconds,
        eta_s=eta.seconds if eta else None,
        eta_source=eta.source if eta else None,
        grace_s=request.signal_delay_s or None,
    )


def _refuse(submission: Submission) -> None:
    if submission.refusal is not None:
        raise submission.refusal


def _hand_in(submission: Submission, call: Call) -> list[HandedIn]:
    folders = [run.folder for run in submission.runs]
    if submission.chain is None:
        refuse_active(folders, call)
        num_jobs, after = 1, None
    else:
        active = active_jobs(folders[0], call)
        num_jobs, after = submission.chain.num_jobs, active[-1].job_id if active else None
    return submit_jobs(
        submission.runs,
        submission.request,
        submission.script,
        num_jobs=num_jobs,
        after=after,
        call=call,
        say=_tell,
    )


def _answer(submission: Submission, jobs: list[HandedIn]) -> dict[str, object]:
    chain = submission.chain
    return {
        "schema": 1,
        "runs": [str(run.folder) for run in submission.runs],
        "jobs": [as_mapping(job, submission.runs) for job in jobs],
        "plan": submission.preview.as_object(),
        "plan_missing": submission.preview.why_not,
        "chain": None if chain is None else {"jobs": chain.num_jobs, "reason": chain.reason},
        "findings": [finding.as_object() for finding in submission.findings],
        "script": submission.script,
    }


def _lint_answer(submission: Submission) -> dict[str, object]:
    answer = _answer(submission, [])
    passed = all(finding.severity != "error" for finding in submission.findings)
    return {"schema": 1, "findings": answer["findings"], "passed": passed}


def _findings(submission: Submission) -> list[RenderableType]:
    found = [Text(str(finding)) for finding in submission.findings]
    return [*found] or [Text("nothing found")]


def _dry_run(submission: Submission) -> list[RenderableType]:
    chain = submission.chain
    jobs = [Text(f"chain: {chain.num_jobs} jobs ({chain.reason})")] if chain else []
    return [
        Text(submission.script),
        *[Text(line) for line in plan_lines(submission.preview, num_runs=len(submission.runs))],
        *jobs,
        *[Text(str(finding)) for finding in submission.findings],
        Text("nothing was submitted (--dry-run)"),
    ]


def _handed_in(submission: Submission, jobs: list[HandedIn]) -> list[RenderableType]:
    chain, first = submission.chain, submission.runs[0]
    lines = plan_lines(submission.preview, num_runs=len(submission.runs))
    for job in jobs:
        cluster = f" on {job.cluster}" if job.cluster else ""
        after = f", after {job.depends_on}" if job.depends_on else ""
        lines.append(f"submitted job {job.job_id}{cluster}{after}")
    if chain is not None:
        lines.append(f"chain: {len(jobs)} jobs ({chain.reason})")
    if len(submission.runs) == 1:
        lines.append(f"log: {log_path(first.folder, jobs[0].job_id)}")
        run = shlex.quote(str(first.folder))
    else:
        names = (f"{jobs[0].job_id}_{task}: {item.folder}" for task, item in enumerate(submission.runs))
        lines += names
        run = "RUN"
    lines += [
        f"follow: megatune status {run} --watch; megatune logs {run} -f",
        f"cancel: megatune cancel {run}",
        "resume: submit again; it goes on from the newest checkpoint",
    ]
    return [Text(line) for line in lines]


def _tell(text: str) -> None:
    print(f"megatune: {text}", file=sys.stderr)
