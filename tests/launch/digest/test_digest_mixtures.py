"""What peers say about a failure they did not cause, and what earlier starts left behind, does not win."""

import os
from datetime import UTC, datetime

import pytest
from planted import EARLIER, GLOO_PEER, NCCL_PEER, STEP_CANCELLED, STEPS, Planted, traceback

OOM = traceback("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
EXITED_3 = "srun: error: n2: task 3: Exited with exit code 1\n"
PEERS_ENDED = "srun: error: n1: tasks 0-1: Terminated\nsrun: error: n2: task 2: Killed\n"


@pytest.mark.parametrize("peer", [GLOO_PEER, NCCL_PEER])
def test_a_rank_without_gpu_memory_wins_over_its_peers_lost_connections(planted: Planted, peer: str):
    planted.ranks = {0: STEPS + peer, 1: STEPS + peer, 2: STEPS + peer, 3: STEPS + OOM}
    planted.job = EXITED_3 + STEP_CANCELLED + PEERS_ENDED

    found = planted.digest("FAILED")

    assert (found.cause.name, found.rank, found.node, found.exit_code) == ("gpu_memory", 3, "n2", 1)


def test_without_a_job_log_the_rank_that_failed_itself_wins(planted: Planted):
    planted.ranks = {0: STEPS + GLOO_PEER, 1: STEPS + GLOO_PEER, 2: STEPS + OOM, 3: STEPS + GLOO_PEER}

    assert (planted.digest().cause.name, planted.digest().rank) == ("gpu_memory", 2)


def test_a_killed_rank_wins_over_peers_with_tracebacks(planted: Planted):
    planted.ranks = {0: STEPS + GLOO_PEER, 1: STEPS, 2: STEPS + GLOO_PEER, 3: STEPS + GLOO_PEER}
    planted.job = (
        "srun: error: n1: task 1: Killed\n" + STEP_CANCELLED + "srun: error: n2: tasks 2-3: Terminated\n"
    )

    found = planted.digest("FAILED")

    assert (found.cause.name, found.rank, found.exit_code) == ("host_memory", 1, -9)


def test_ranks_that_srun_killed_after_a_failure_are_not_out_of_memory(planted: Planted):
    planted.ranks = {0: STEPS, 1: STEPS, 2: STEPS, 3: STEPS + traceback("ValueError: no such layer")}
    planted.job = EXITED_3 + STEP_CANCELLED + "srun: error: n1: tasks 0-1: Killed\n"

    found = planted.digest("FAILED")

    assert (found.cause.name, found.rank) == ("software", 3)


def test_a_lost_node_wins_over_the_lost_connections_to_it(planted: Planted):
    planted.ranks = {0: STEPS + GLOO_PEER, 1: STEPS + GLOO_PEER, 2: STEPS, 3: STEPS}
    planted.job = "srun: error: Node failure on n2\nsrun: error: n1: tasks 0-1: Exited with exit code 1\n"

    found = planted.digest("NODE_FAIL")

    assert (found.cause.name, found.node, found.rank) == ("node", "n2", None)


def test_a_cancelled_step_alone_is_not_a_cancelled_job(planted: Planted):
    planted.ranks = {0: STEPS + traceback("IndexError: list index out of range"), 1: STEPS}
    planted.job = "srun: error: n1: task 0: Exited with exit code 1\n" + STEP_CANCELLED

    assert planted.digest("FAILED").cause.name == "software"


def test_a_hang_that_ended_at_the_time_limit_tells_the_memory_that_caused_it(planted: Planted):
    planted.ranks = {0: STEPS, 1: STEPS + OOM}
    planted.job = (
        "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-23T12:00:00 DUE TO TIME LIMIT ***\n"
    )

    found = planted.digest("TIMEOUT")

    assert (found.cause.name, found.rank) == ("gpu_memory", 1)


def test_lost_connections_at_the_time_limit_are_the_time_limits(planted: Planted):
    planted.ranks = {0: STEPS + GLOO_PEER, 1: STEPS}
    planted.job = (
        "slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-11-23T12:00:00 DUE TO TIME LIMIT ***\n"
    )

    assert planted.digest("TIMEOUT").cause.name == "time_limit"


def test_the_one_rank_that_fell_silent_is_named_when_the_others_waited_for_it(planted: Planted):
    planted.ranks = {0: STEPS + NCCL_PEER, 1: STEPS, 2: STEPS + NCCL_PEER}

    found = planted.digest()

    assert found.cause.name == "nccl"
    assert "Watchdog caught" in found.text
    assert found.rank in (0, 2), "whose words are quoted"
    assert found.silent_rank == 1
    assert "Rank 1 ended without a word" in found.text


def test_no_rank_is_named_when_all_fell_silent(planted: Planted):
    planted.ranks = {0: STEPS, 1: STEPS}

    found = planted.digest("FAILED")

    assert (found.cause.name, found.rank) == ("unknown", None)


def test_a_full_disk_is_not_told_as_a_broken_checkpoint(planted: Planted):
    said = "megatune: the checkpoint could not be saved. rank 1: [Errno 28] No space left on device"
    planted.ranks = {0: said + "\n", 1: said + "\n"}

    assert planted.digest("FAILED").cause.name == "disk"


def test_a_taken_port_is_not_told_as_a_failed_rendezvous(planted: Planted):
    waiting = traceback("torch.distributed.DistNetworkError: The client socket has timed out after 60000ms")
    planted.ranks = {0: traceback("RuntimeError: bind: EADDRINUSE address already in use"), 1: waiting}

    assert (planted.digest().cause.name, planted.digest().rank) == ("port", 0)


def test_a_notice_at_the_start_is_not_taken_for_the_refusal_of_the_run_file(planted: Planted):
    notice = "megatune: warmup_ratio is read as train.warmup_steps\n"
    planted.ranks = {
        0: notice + STEPS + GLOO_PEER,
        1: STEPS + traceback("ZeroDivisionError: division by zero"),
    }

    assert (planted.digest().cause.name, planted.digest().rank) == ("software", 1)


def test_a_checkpoint_that_was_passed_over_is_no_failure(planted: Planted):
    note = "checkpoint passed over /r/checkpoints/step-00000002: rank-00000.json has changed since it was saved\n"
    planted.ranks = {0: note + STEPS + traceback("ValueError: x")}

    assert planted.digest().cause.name == "software"


def test_only_the_last_start_counts(planted: Planted):
    planted.earlier(0, OOM)
    planted.ranks = {0: STEPS + traceback("ModuleNotFoundError: No module named 'x'"), 1: STEPS}

    found = planted.digest("FAILED")

    assert found.cause.name == "import"
    assert "OutOfMemory" not in found.text


def test_a_rank_that_the_last_start_did_not_have_does_not_count(planted: Planted):
    planted.earlier(3, OOM)
    planted.ranks = {0: STEPS, 1: STEPS + traceback("ModuleNotFoundError: No module named 'x'")}

    found = planted.digest("FAILED")

    assert found.cause.name == "import"
    assert found.num_ranks == 2


def test_a_rank_that_did_not_get_as_far_as_its_header_is_not_judged_by_its_earlier_start(planted: Planted):
    planted.earlier(1, OOM)
    planted.ranks = {0: STEPS + GLOO_PEER}
    planted.digest()
    log = planted.folder / "logs/rank-00000.log"
    log.write_text(log.read_text().replace("rank 0 of 1", "rank 0 of 2"))
    planted.ranks = {}

    found = planted.digest()

    assert found.cause.name == "gloo"
    assert EARLIER not in found.text


def test_evidence_names_the_file_and_the_line_as_an_editor_counts_them(planted: Planted):
    planted.earlier(0, STEPS)
    planted.ranks = {0: STEPS + OOM}

    found = planted.digest()

    (line,) = [entry for entry in found.evidence if "Tried to allocate" in entry.text]
    assert line.file == "logs/rank-00000.log"
    text = (planted.folder / line.file).read_text().splitlines()
    assert "Tried to allocate" in text[line.line - 1]


def test_a_stop_that_saved_is_no_failure(planted: Planted):
    planted.ranks = {0: STEPS}
    planted.metrics(
        {"event": "run", "total_steps": 100},
        {"event": "step", "step": 12},
        {"event": "stop", "step": 12, "exit_code": 75, "reason": "asked to stop by SIGTERM"},
    )

    found = planted.digest("CANCELLED")

    assert found.cause.name == "stopped"
    assert "asked to stop by SIGTERM" in found.text
    assert "after step 12 of 100" in found.summary


def test_the_stop_of_an_earlier_start_does_not_hide_a_failure(planted: Planted):
    planted.ranks = {0: STEPS + OOM}
    planted.metrics(
        {"event": "run"}, {"event": "stop", "exit_code": 75}, {"event": "run", "total_steps": 100}
    )

    assert planted.digest("FAILED").cause.name == "gpu_memory"


def test_the_time_is_that_of_the_evidence_when_it_has_one(planted: Planted):
    planted.ranks = {0: STEPS}
    planted.job = (
        "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-23T10:30:05 DUE TO TIME LIMIT ***\n"
    )

    assert planted.digest("TIMEOUT").time == datetime(2026, 11, 23, 10, 30, 5).astimezone(UTC)


def test_without_any_log_slurms_word_is_the_evidence(planted: Planted):
    found = planted.digest("NODE_FAIL", "NodeDown")

    assert found.cause.name == "node"
    assert [str(line) for line in found.evidence] == ["Slurm: job 7 is NODE_FAIL (NodeDown)"]


def test_a_rank_that_its_launcher_saw_die_is_known_by_that(planted: Planted):
    killed = "=== 2026-11-23T10:05:00Z rank 1 ended: signal 9 ===\n"
    planted.ranks = {0: STEPS + GLOO_PEER, 1: STEPS + killed}

    found = planted.digest()

    assert (found.cause.name, found.rank, found.exit_code) == ("host_memory", 1, -9)


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("HF_TOKEN=hf_abcdefghijklmnopqrstuv CUDA out of memory", "hf_abcdefghijklmnopqrstuv"),
        ("export WANDB_API_KEY='0123456789abcdef' CUDA out of memory", "0123456789abcdef"),
        ("Authorization: Bearer abc.def.ghi CUDA out of memory", "abc.def.ghi"),
        ('{"password": "correct-horse"} CUDA out of memory', "correct-horse"),
        ("https://me:s3cret9@host/repo CUDA out of memory", "s3cret9"),
        ("AKIAABCDEFGHIJKLMNOP CUDA out of memory", "AKIAABCDEFGHIJKLMNOP"),
        ("run --api-key abcdef123456 CUDA out of memory", "abcdef123456"),
    ],
)
def test_a_secret_in_a_quoted_line_is_not_shown(planted: Planted, line: str, secret: str):
    planted.ranks = {0: f"{line}\n"}

    found = planted.digest()

    assert found.cause.name == "gpu_memory" or "[redacted]" in found.text
    assert secret not in found.text
    assert secret not in str(found.as_object())
    assert "[redacted]" in found.text


def test_numbers_and_prose_about_tokens_are_no_secrets(planted: Planted):
    line = "CUDA out of memory at tokens: 134515008, num_tokens=4096, token ids: missing"
    planted.ranks = {0: f"{line}\n"}

    assert line in planted.digest().text


def test_logs_of_any_bytes_are_read(planted: Planted):
    (planted.folder / "logs").mkdir()
    noise = os.urandom(200_000)
    (planted.folder / "logs/rank-00000.log").write_bytes(noise + b"\n" + OOM.encode())

    assert planted.digest().cause.name == "gpu_memory"


def test_exit_codes_that_the_batch_script_notes_are_no_messages(planted: Planted):
    planted.ranks = {
        0: STEPS + "megatune: rank 0 exit code 75\n",
        1: STEPS + traceback("IndexError: list index out of range") + "megatune: rank 1 exit code 1\n",
    }

    found = planted.digest("FAILED")

    assert (found.cause.name, found.rank, found.exit_code) == ("software", 1, 1)


def test_a_signal_that_a_shell_reports_as_128_and_more_is_a_signal(planted: Planted):
    planted.ranks = {0: STEPS + GLOO_PEER, 1: STEPS + "megatune: rank 1 exit code 137\n"}
    ends = ((1, 137), (0, 143))
    planted.job = "".join(
        f"srun: error: n1: task {rank}: Exited with exit code {code}\n" for rank, code in ends
    )

    found = planted.digest("FAILED")

    assert (found.cause.name, found.rank, found.exit_code) == ("host_memory", 1, -9)


def test_the_batch_scripts_word_about_lost_nodes_names_them(planted: Planted):
    planted.ranks = {0: STEPS + GLOO_PEER, 1: STEPS}
    planted.job = "srun: error: n1: task 0: Exited with exit code 1\nmegatune: lost n2,n3\n"

    found = planted.digest("FAILED")

    assert (found.cause.name, found.node) == ("node", "n2,n3")


def test_the_batch_scripts_word_about_a_cancel_is_understood(planted: Planted):
    planted.ranks = {0: ""}
    planted.job = "megatune: cancelled by the user; not queued again\n"

    assert planted.digest("FAILED").cause.name == "cancelled"


def test_the_lost_node_is_named_and_not_the_one_whose_rank_was_ended_for_it(planted: Planted):
    """As Slurm 22.05 wrote it when a node of two lost its power."""
    ended = (
        "*** {} ON n1 CANCELLED AT 2026-11-23T21:00:35 DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***"
    )
    planted.ranks = {0: f"slurmstepd-n1: error: {ended.format('STEP 7.0')}\n", 1: ""}
    planted.job = (
        f"srun: error: Node failure on n2\nslurmstepd-n1: error: {ended.format('JOB 7')}\n"
        "srun: Job step aborted: Waiting up to 7 seconds for job step to finish.\n"
        "srun: error: n1: task 0: Terminated\n"
    )

    found = planted.digest("NODE_FAIL")

    assert (found.cause.name, found.rank, found.node) == ("node", None, "n2")


def test_a_node_over_the_memory_limit_is_named_and_no_rank_that_srun_killed(planted: Planted):
    """As Slurm 22.05 wrote it for a step on two nodes, of which the second used too much."""
    over = "slurmstepd-n2: error: StepId=7.0 exceeded memory limit (811270144 > 314572800), being killed\n"
    planted.ranks = {0: STEPS, 1: STEPS, 2: STEPS + over + over, 3: STEPS}
    planted.job = (
        "slurmstepd-n1: error: Exceeded job memory limit\n"
        "srun: error: n1: task 0: Killed\nsrun: error: n2: task 2: Killed\n"
    )

    found = planted.digest("FAILED")

    assert (found.cause.name, found.rank, found.node) == ("host_memory", None, "n2")
    assert "811270144" in str(found.evidence[0])
    assert "job 7 ran out of host memory (n2)" in found.text


def test_data_that_could_not_be_prepared_wins_over_what_an_earlier_start_left(planted: Planted):
    planted.earlier(0, "megatune: parallel.tp_size = 3 does not divide the 4 ranks\n")
    planted.metrics({"event": "run"}, {"event": "stop", "exit_code": 75, "reason": "SIGTERM"})
    planted.job = (
        "megatune: preparing the data, where that was not done before\n"
        "megatune: rows.jsonl:61: not valid JSON: Expecting value\n"
        "srun: error: n1: task 0: Exited with exit code 2\n"
        "megatune: the data could not be prepared (exit code 2): see above\n"
    )

    found = planted.digest("FAILED")

    assert (found.cause.name, found.rank) == ("data", None)
    assert "rows.jsonl:61" in found.evidence[0].text


def test_a_refusal_before_the_ranks_is_the_run_files_fault(planted: Planted):
    planted.job = (
        "megatune: preparing the data, where that was not done before\n"
        "megatune: run.yaml: evaluate.max_new_tokens = 4096 leaves no room for a prompt\n"
        "srun: error: n1: task 0: Exited with exit code 2\n"
        "megatune: the data could not be prepared (exit code 2): see above\n"
    )

    found = planted.digest("FAILED")

    assert (found.cause.name, found.rank) == ("config", None)
    assert "max_new_tokens" in found.evidence[0].text
