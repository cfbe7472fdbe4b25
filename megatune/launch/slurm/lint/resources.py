"""Rules on what a job asks for: tasks against nodes, GPUs and the run; CPU cores; memory."""

import re
from collections.abc import Iterator

from megatune.launch.slurm.lint.finding import Hit, LintFacts, Rule
from megatune.launch.slurm.lint.parse import BatchScript
from megatune.launch.slurm.quantities import parse_memory_bytes
from megatune.units import format_bytes

_TRAINS = re.compile(r"\bmegatune\s+train\b")
NODE_LAUNCHERS = ("torchrun", "torch.distributed.run", "torch.distributed.launch", "accelerate", "deepspeed")
"""Programs that start the ranks of one node themselves."""


def starts_ranks_itself(script: BatchScript) -> bool:
    """Whether a launcher of the script starts one rank a GPU, so that Slurm shall not."""
    return bool(script.calls(*NODE_LAUNCHERS)) or any(
        name in command.text for command in script.commands for name in NODE_LAUNCHERS[1:3]
    )


def _tasks_against_nodes(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    total, per_node, nodes = script.number("ntasks"), script.number("ntasks-per-node"), script.nodes
    option = script.option("ntasks")
    if option and total and per_node and nodes and total != per_node * nodes:
        yield Hit(
            line=option.line,
            message=f"{total} tasks are asked for, but {nodes} nodes x {per_node} tasks are {nodes * per_node}.",
        )


def _tasks_against_gpus(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    gpus, tasks = script.gpus_per_node, script.tasks_per_node
    if not gpus or tasks is None or starts_ranks_itself(script) or not script.calls("srun"):
        return
    option = script.option("ntasks-per-node", "ntasks")
    if tasks != gpus:
        less = f"{gpus - tasks} of them stand idle" if tasks < gpus else "some of them share one"
        yield Hit(
            line=option.line if option else None,
            message=f"{tasks} tasks a node and {gpus} GPUs: a rank uses one GPU, so {less}.",
            fix=f"Ask for --ntasks-per-node={gpus}.",
        )


def _many_launchers(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    tasks = script.tasks_per_node
    for command in script.calls("srun"):
        launched = [
            name for name in NODE_LAUNCHERS if re.search(rf"(^|[\s/]){re.escape(name)}(\s|$)", command.text)
        ]
        if launched and tasks and tasks > 1 and "--ntasks-per-node=1" not in command.text:
            yield Hit(
                line=command.line,
                message=f"srun starts {tasks} x {launched[0]} on each node, and each of them starts all ranks of it.",
            )


def _first_node_only(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    nodes = script.nodes
    if not nodes or nodes == 1:
        return
    for command in script.commands:
        launched = next(
            (
                name
                for name in NODE_LAUNCHERS
                if re.search(rf"(^|[\s/]){re.escape(name)}(\s|$)", command.text)
            ),
            None,
        )
        if launched is None and _TRAINS.search(command.text):
            launched = "megatune train"
        by_hand = re.search(r"\b(srun|ssh|pdsh|mpirun|mpiexec|clush)\b", command.text)
        if launched and not by_hand and launched not in ("deepspeed", "accelerate"):
            end = "the others stand idle" if launched == "megatune train" else "waits for the others for ever"
            yield Hit(
                line=command.line,
                message=f"{launched} is started without srun: it runs on the first of the {nodes} nodes alone and "
                f"{end}.",
            )


def _against_the_run(script: BatchScript, facts: LintFacts) -> Iterator[Hit]:
    nodes = script.nodes
    per_node = script.gpus_per_node if starts_ranks_itself(script) else script.tasks_per_node
    total = script.number("ntasks") if not starts_ranks_itself(script) else None
    world = total or (nodes * per_node if nodes and per_node else None)
    option = script.option("ntasks", "ntasks-per-node", "nodes")
    line = option.line if option else None
    if world and facts.world_size and world != facts.world_size:
        yield Hit(
            line=line, message=f"The script starts {world} ranks, the run is made for {facts.world_size}."
        )
    degree = facts.tensor_parallel
    if world and degree and world % degree:
        yield Hit(line=line, message=f"parallel.tp_size = {degree} does not divide the {world} ranks.")


def _differing_gpus(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    per_node, gres = script.option("gpus-per-node"), script.option("gres")
    if per_node and gres and "gpu" in gres.value:
        numbers = [option.value.rpartition(":")[2] for option in (per_node, gres)]
        if numbers[0] != numbers[1]:
            yield Hit(
                line=gres.line, message=f"--gres={gres.value} and --gpus-per-node={per_node.value} differ."
            )


def _gpus_per_task(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    option = script.option("gpus-per-task")
    if option:
        yield Hit(
            line=option.line,
            message="With --gpus-per-task each rank sees its own GPU alone, as device 0: programs that take the local "
            "rank for the device number fail with `invalid device ordinal`, and NCCL may lose direct GPU-to-GPU "
            "transfers. megatune itself takes the one it sees.",
        )


def _visible_by_hand(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    command = script.sets("CUDA_VISIBLE_DEVICES")
    if command and script.gpus_per_node:
        yield Hit(
            line=command.line,
            message="CUDA_VISIBLE_DEVICES is set by hand; Slurm sets it to the GPUs it has granted.",
        )


def _cores(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    if script.option("cpus-per-task", "cpus-per-gpu", "exclusive") is None and script.commands:
        yield Hit(
            line=None,
            message="No --cpus-per-task: a task gets one core, and its threads and loaders share it.",
        )


def _threads(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    if script.commands and script.sets("OMP_NUM_THREADS") is None and not starts_ranks_itself(script):
        yield Hit(
            line=None,
            message="OMP_NUM_THREADS is not set: each rank may start a thread for every core of the node.",
        )


def _memory(script: BatchScript, facts: LintFacts) -> Iterator[Hit]:
    option = script.option("mem")
    given = parse_memory_bytes(option.value) if option else None
    if option and given and facts.host_bytes_per_node and given < facts.host_bytes_per_node:
        yield Hit(
            line=option.line,
            message=f"--mem={option.value} is {format_bytes(given)} a node; the ranks hold at least "
            f"{format_bytes(facts.host_bytes_per_node)} there, without activations, buffers and data.",
            fix="Ask for more, or for all of the node's memory: --mem=0.",
        )


def _two_memories(script: BatchScript, _: LintFacts) -> Iterator[Hit]:
    found = [option for name in ("mem", "mem-per-cpu", "mem-per-gpu") if (option := script.option(name))]
    if len(found) > 1:
        names = " and ".join(f"--{option.name}" for option in found)
        yield Hit(line=found[-1].line, message=f"{names} exclude each other.")


RESOURCE_RULES = (
    Rule(
        name="tasks-and-nodes",
        severity="error",
        check=_tasks_against_nodes,
        fix="Give --nodes and --ntasks-per-node only.",
    ),
    Rule(name="tasks-and-gpus", severity="error", check=_tasks_against_gpus, fix="Ask for one task a GPU."),
    Rule(
        name="launcher-per-task",
        severity="error",
        check=_many_launchers,
        fix="Start one of them a node: srun --ntasks=$SLURM_NNODES --ntasks-per-node=1 ...",
    ),
    Rule(
        name="first-node-only",
        severity="error",
        check=_first_node_only,
        fix="Put srun before it, one task a node.",
    ),
    Rule(name="ranks-and-run", severity="error", check=_against_the_run, fix="Make both agree."),
    Rule(name="gpus-given-twice", severity="error", check=_differing_gpus, fix="Keep one of the two."),
    Rule(
        name="gpus-per-task",
        severity="note",
        check=_gpus_per_task,
        fix="--gpus-per-node shows all GPUs to all ranks.",
    ),
    Rule(name="devices-by-hand", severity="warning", check=_visible_by_hand, fix="Take the line out."),
    Rule(name="cores", severity="warning", check=_cores, fix="Ask for cores: --cpus-per-task=N."),
    Rule(name="threads", severity="note", check=_threads, fix="export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK"),
    Rule(name="memory", severity="error", check=_memory, fix="Ask for more memory."),
    Rule(name="memory-given-twice", severity="error", check=_two_memories, fix="Keep one of them."),
)
