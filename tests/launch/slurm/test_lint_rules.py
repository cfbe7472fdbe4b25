"""Every rule finds its mistake, at its line, and keeps quiet about the script that is right."""

import subprocess

import pytest

from megatune.launch.slurm.lint import RULES, LintFacts, lint_script
from megatune.launch.slurm.lint.parse import parse_script

GOOD = """\
#!/bin/bash
#SBATCH --job-name=train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --output=logs/%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@300

set -e
export OMP_NUM_THREADS=8
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))
trap 'kill -USR2 $pid' USR2
srun --kill-on-bad-exit=1 megatune train run.yaml & pid=$!
wait $pid
"""
TORCHRUN = """\
#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=4 --cpus-per-task=32 --time=60
set -e
srun torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint $HOST:$PORT train.py
"""
LAST = "wait $pid\n"

# rule, what is changed in GOOD (old, new), the line it is found at, words of the message
PLANTED = [
    ("no-shell", ("#!/bin/bash\n", "# my job\n"), 1, "which shell"),
    ("windows-lines", ("set -e\n", "set -e\r\n"), 14, "Windows"),
    ("unexpanded-variable", ("--nodes=2", "--nodes=$NODES"), 3, "expands nothing"),
    ("unexpanded-variable", ("--job-name=train", "--job-name=`date`"), 2, "expands nothing"),
    ("option-after-command", (LAST, LAST + "#SBATCH --exclusive\n"), 20, "line 14"),
    ("nearly-an-option", ("#SBATCH --requeue", "# SBATCH --requeue"), 11, "comment"),
    ("unknown-option", ("--requeue", "--re-queue"), 11, "Did you mean --requeue?"),
    ("unknown-option", ("--requeue", "requeue"), 11, "'requeue' is no option"),
    ("given-twice", ("#SBATCH --requeue", "#SBATCH -N 3"), 11, "2 in line 3"),
    ("expanded-too-early", ("megatune train", "env RANK=$SLURM_PROCID megatune train"), 18, "same value"),
    ("tasks-and-nodes", ("#SBATCH --requeue", "#SBATCH -n 6"), 11, "2 nodes x 4 tasks are 8"),
    ("tasks-and-gpus", ("--gpus-per-node=4", "--gpus-per-node=8"), 4, "4 of them stand idle"),
    ("tasks-and-gpus", ("--gpus-per-node=4", "--gres=gpu:a100:2"), 4, "share one"),
    ("launcher-per-task", ("megatune train", "torchrun -m megatune train"), 18, "4 x torchrun"),
    ("gpus-given-twice", ("#SBATCH --requeue", "#SBATCH --gres=gpu:2"), 11, "differ"),
    ("gpus-per-task", ("#SBATCH --gpus-per-node=4", "#SBATCH --gpus-per-task=1"), 5, "device 0"),
    ("devices-by-hand", ("set -e\n", "set -e\nexport CUDA_VISIBLE_DEVICES=0,1\n"), 15, "by hand"),
    ("cores", ("#SBATCH --cpus-per-task=8\n", ""), None, "one core"),
    ("threads", ("export OMP_NUM_THREADS=8\n", ""), None, "OMP_NUM_THREADS"),
    ("memory-given-twice", ("#SBATCH --requeue", "#SBATCH --mem-per-cpu=2G"), 11, "exclude each other"),
    ("fixed-port", ("$((20000 + SLURM_JOB_ID % 12000))", "29500"), 16, "29500 is fixed"),
    ("local-master", ("set -e\n", "set -e\nexport MASTER_ADDR=localhost\n"), 15, "own node"),
    ("address-of-host", ("set -e\n", "set -e\nMASTER_ADDR=$(hostname -I)\n"), 15, "loopback"),
    ("loopback-interface", ("set -e\n", "set -e\nexport GLOO_SOCKET_IFNAME=lo\n"), 15, "other nodes"),
    ("outside-slurm", ("set -e\n", "set -e\npdsh -w n1 python train.py\n"), 15, "outside of the job"),
    ("outside-slurm", ("set -e\n", "set -e\ndeepspeed --num_gpus 4 train.py\n"), 15, "deepspeed"),
    ("closed-environment", ("#SBATCH --requeue", "#SBATCH --export=NONE"), 11, "without the modules"),
    ("survivors", ("--kill-on-bad-exit=1 ", ""), 18, "waiting in a collective"),
    ("usr1", ("B:USR2@300", "USR1@300"), 12, "NCCL"),
    ("signal-without-trap", ("trap 'kill -USR2 $pid' USR2\n", ""), 12, "no trap"),
    ("deaf-trap", ("run.yaml & pid=$!\nwait $pid\n", "run.yaml\n"), 18, "in the foreground"),
    ("no-time", ("#SBATCH --time=04:00:00\n", ""), None, "--time"),
    ("no-requeue", ("#SBATCH --requeue", "#SBATCH --no-requeue\nscontrol requeue 1 || true"), 11, "line 12"),
    ("log-of-its-own", ("%x-%j.out", "train.out"), 9, "same file"),
    ("log-kept", ("#SBATCH --open-mode=append\n", ""), 10, "anew"),
    ("lost-exit-code", ("set -e\n", "true\n"), 18, "COMPLETED"),
]
PLANTED[-1] = (
    "lost-exit-code",
    (GOOD[GOOD.index("set -e") :], "srun -K megatune train run.yaml\necho done\n"),
    14,
    "COMPLETED",
)

WITH_FACTS = [
    ("ranks-and-run", LintFacts(world_size=16), 4, "8 ranks, the run is made for 16"),
    ("ranks-and-run", LintFacts(tensor_parallel=3), 4, "does not divide the 8"),
    ("memory", LintFacts(host_bytes_per_node=80 * 2**30), 7, "at least 80"),
    ("short-grace", LintFacts(save_seconds=290.0, step_seconds=10.0), 12, "take 310 s"),
    ("time-and-run", LintFacts(eta_s=9 * 3600.0), 8, "queued again"),
    ("requeue-without-saves", LintFacts(has_checkpoints=False), 11, "a node that fails"),
]


def found(text: str, rule: str, facts: LintFacts | None = None):
    return [finding for finding in lint_script(text, facts) if finding.rule == rule]


def test_a_script_that_is_right_has_no_findings():
    assert lint_script(GOOD) == []
    done = subprocess.run(["bash", "-n"], input=GOOD, text=True, capture_output=True, check=False)
    assert done.returncode == 0, "the example itself must be bash"


def test_a_torchrun_script_that_is_right_has_no_findings():
    assert [str(finding) for finding in lint_script(TORCHRUN)] == []


@pytest.mark.parametrize(
    ("rule", "change", "line", "words"), PLANTED, ids=[f"{p[0]}-{n}" for n, p in enumerate(PLANTED)]
)
def test_a_planted_mistake_is_found_at_its_line(rule, change, line, words):
    assert change[0] in GOOD
    text = GOOD.replace(*change)

    (finding,) = found(text, rule)

    assert finding.line == line
    assert words in finding.message
    assert finding.fix
    assert found(GOOD, rule) == []


@pytest.mark.parametrize(
    ("rule", "facts", "line", "words"), WITH_FACTS, ids=[f"{w[0]}-{n}" for n, w in enumerate(WITH_FACTS)]
)
def test_a_script_that_contradicts_its_run_is_found(rule, facts, line, words):
    (finding,) = found(GOOD, rule, facts)

    assert finding.line == line
    assert words in finding.message
    assert found(GOOD, rule, LintFacts()) == []


def test_torchrun_without_srun_starts_on_the_first_node_only():
    (finding,) = found(TORCHRUN.replace("srun torchrun", "torchrun"), "first-node-only")
    assert finding.line == 4
    assert "first of the 2 nodes" in finding.message


@pytest.mark.parametrize("command", ["megatune train run.yaml", "python -P -m megatune train run.yaml"])
def test_a_training_without_srun_leaves_the_other_nodes_idle(command):
    head = "".join(TORCHRUN.splitlines(keepends=True)[:3])
    (finding,) = found(f"{head}{command}\n", "first-node-only")
    assert "the others stand idle" in finding.message
    assert found(f"{head}srun {command}\n", "first-node-only") == []


@pytest.mark.parametrize(
    ("line", "is_lost"),
    [
        ("srun -K1 megatune train run.yaml | tee train.log", True),
        ("srun -K1 megatune train run.yaml || exit 1", False),
        ('srun -K1 bash -c "a | b" || exit 1', False),
        ("hosts=$(srun hostname | sort)", False),
        ('echo "use srun to start"', False),
        ("set -o pipefail; srun -K1 megatune train run.yaml | tee train.log", False),
    ],
)
def test_a_pipe_hides_how_its_first_program_ended(line, is_lost):
    script = GOOD.partition("srun ")[0] + f"{line}\n"
    assert bool(found(script, "lost-exit-code")) is is_lost
    if "-K1" in line:
        assert found(script, "survivors") == []


def test_every_rule_has_a_planted_mistake():
    planted = {rule for rule, *_ in (*PLANTED, *WITH_FACTS)} | {"first-node-only"}
    assert {rule.name for rule in RULES} == planted


def test_options_are_read_in_every_way_sbatch_takes_them():
    script = parse_script(
        "#!/bin/sh\n#SBATCH -N2 -n 8 --gres=gpu:a100:4 --exclusive # why\n#SBATCH --time 1-00:00:00\n"
    )
    assert [(option.name, option.value) for option in script.options] == [
        ("nodes", "2"),
        ("ntasks", "8"),
        ("gres", "gpu:a100:4"),
        ("exclusive", ""),
        ("time", "1-00:00:00"),
    ]
    assert (script.nodes, script.tasks_per_node, script.gpus_per_node) == (2, 4, 4)


def test_continued_lines_are_one_command_and_here_documents_are_none():
    script = parse_script("#!/bin/sh\nsrun a \\\n  b\ncat <<EOF\nsrun not this\nEOF\nlast\n")
    assert [(command.line, command.text) for command in script.commands] == [
        (2, "srun a  b"),
        (4, "cat <<EOF"),
        (7, "last"),
    ]


def test_no_text_makes_the_linter_fail():
    for text in (
        "",
        "\n",
        "#SBATCH",
        "#SBATCH --",
        "#SBATCH -",
        "#SBATCH '",
        "srun \\",
        *(
            f"#SBATCH --{name}={'9' * 5000}\nsrun megatune train run.yaml"
            for name in ("nodes", "time", "mem", "gres=gpu")
        ),
    ):
        lint_script(text)
