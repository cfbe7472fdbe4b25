"""Causes inside of the program: input, installation, numbers, code. `weight`s are explained in cause.py."""

from megatune.launch.digest.cause import Cause

PROGRAM_CAUSES: tuple[Cause, ...] = (
    Cause(
        name="port",
        weight=19,
        what="found its port taken",
        meaning="Another program listens on the port that the ranks were to meet at.",
        next_step="Start again: another port is taken. A MASTER_PORT fixed by hand in a script or site "
        "should go.",
        source="error texts of the C library: EADDRINUSE; torch's TCPStore",
        patterns=(r"EADDRINUSE|[Aa]ddress already in use|errno: 98\b",),
    ),
    Cause(
        name="numeric",
        weight=20,
        what="computed numbers that are not finite",
        meaning="The loss or the gradient became NaN or infinite. Nothing of it was saved.",
        next_step="Lower train.learning_rate or raise train.warmup_steps, look at the data of that step, use "
        "precision=bf16 instead of fp16; then start again from the newest checkpoint.",
        source="megatune's check of every step; torch's anomaly mode; DeepSpeed's loss scaler",
        patterns=(
            r"numbers that are not finite|gradient norm not finite",
            r"returned nan values|FloatingPointError|loss scale already at minimum",
        ),
    ),
    Cause(
        name="hub",
        weight=21,
        what="could not get the model or data from the hub",
        meaning="Compute nodes often have no way to the internet, or the repository is private, gated or "
        "misspelt.",
        next_step="Fetch it on the login node first (`hf download NAME`, with HF_HOME on a shared file "
        "system), or "
        "give a local folder in model.model_name_or_path.",
        source="error texts of huggingface_hub and transformers",
        patterns=(
            r"HfHubHTTPError|RepositoryNotFoundError|GatedRepoError|LocalEntryNotFoundError|OfflineModeIsEnabled",
            r"[Cc]ouldn't connect to .*huggingface|huggingface\.co.*(?:Max retries|timed out|[Cc]onnection)",
            r"is not a local folder and is not a valid model identifier|outgoing traffic has been disabled",
            r"You are trying to access a gated repo",
        ),
    ),
    Cause(
        name="import",
        weight=22,
        what="could not load a library",
        meaning="A Python package or shared library is missing on the node, or was built for another system "
        "or version.",
        next_step="Check the site's modules, source and python lines: the same environment must exist on "
        "every node. "
        "`megatune doctor` compares the nodes' versions.",
        source="error texts of Python's import system and of ld.so",
        patterns=(
            r"ModuleNotFoundError|^ImportError|No module named",
            r"undefined symbol|GLIBC(?:XX)?_[\d.]+'? not found|CXXABI_[\d.]+'? not found",
            r"cannot open shared object file",
        ),
    ),
    Cause(
        name="device",
        weight=24,
        what="could not use a GPU",
        meaning="The driver, the GPU or their visibility to this rank is wrong.",
        next_step="See what the job sees with `srun nvidia-smi -L`; compare slurm.gpus_per_node and the "
        "site's gpu_request "
        "with the ranks on a node, and torch's CUDA version with the driver's.",
        source="CUDA runtime and driver error texts; torch.cuda",
        patterns=(
            r"driver version is insufficient|NVIDIA driver on your system is too old|Found no NVIDIA driver",
            r"no (?:CUDA|ROCm)-capable device|No CUDA GPUs are available|hipErrorNoDevice",
            r"invalid device ordinal|no kernel image is available|all CUDA-capable devices are busy",
            r"Driver/library version mismatch|CUDA unknown error|system not yet initialized",
        ),
    ),
    Cause(
        name="checkpoint",
        weight=26,
        what="could not read or write a checkpoint",
        meaning="A checkpoint is damaged, incomplete, or belongs to another run or layout; older ones are "
        "untouched.",
        next_step="`megatune checkpoint verify RUN` names the damaged files; set checkpoint.resume to an "
        "older folder, or "
        "move the damaged one away.",
        source="megatune's checkpoint errors; safetensors; torch's reader",
        patterns=(
            r"(?:CheckpointError|ResumeError|SafetensorError)\b",
            r"^megatune: .*(?:is not a whole checkpoint|has changed since it was saved|was saved at dp)",
            r"^megatune: .*(?:checkpoint could not be saved|checkpoint\.resume|/step-\d{8})",
            r"PytorchStreamReader failed|invalid header or archive is corrupted",
        ),
    ),
    Cause(
        name="data",
        weight=27,
        what="could not use the data",
        meaning="A data file is missing, broken, or does not have the columns that the task reads.",
        next_step="Correct the file or the mapping that the line names; `megatune prepare RUN.yaml "
        "--preview 2` checks it "
        "without a job.",
        source="megatune's data errors; datasets and pyarrow",
        patterns=(
            r"\bDataError\b|^megatune: .*\bdata\.(?:train|validation)\b",
            r"^megatune: .*\.(?:jsonl?|csv|tsv|txt|parquet)\S*(?::\d+| \(row \d+\))",
            r"DatasetGenerationError|datasets\.exceptions|ArrowInvalid|pyarrow\.lib",
            r"UnicodeDecodeError|JSONDecodeError",
        ),
    ),
    Cause(
        name="launcher",
        weight=29,
        what="was not started by Slurm as asked",
        meaning="Slurm or the batch script could not start the program, or MPI does not fit it.",
        next_step="Look at the quoted line: the site's modules and python must exist on the node, and its "
        "mpi must be one "
        "that `srun --mpi=list` names.",
        source="srun, slurmstepd, bash, Lmod and Open MPI messages",
        patterns=(
            r"execve\(\):|error: Unable to create step|[Tt]ask launch .*failed|Requested node configuration is not",
            r": command not found|Lmod has detected the following error|Unable to locate a modulefile",
            r"couldn't chdir to|OMPI was not built with|MPI_Init\w* .*(?:failed|aborted)",
            r"srun: error: Invalid|srun: fatal:",
        ),
        of_job=True,
    ),
    Cause(
        name="crash",
        weight=34,
        what="crashed in native code",
        meaning="A library, not Python, stopped the process: a faulty build, driver or op.",
        next_step="The Python stack in the rank's log shows the call. Rebuild ops in an empty "
        "TORCH_EXTENSIONS_DIR, and "
        "compare versions with `megatune doctor`.",
        source="Python's faulthandler; signal names of the C library",
        patterns=(
            r"Fatal Python error: (?:Segmentation fault|Illegal instruction|Floating point exception)",
        ),
        signals=frozenset({4, 8, 11}),
    ),
    Cause(
        name="crash",
        weight=65,
        what="aborted in native code",
        meaning="A library, not Python, gave the process up.",
        next_step="The lines above `Aborted` in the rank's log, and the Python stack below it, show the "
        "call.",
        source="Python's faulthandler; signal names of the C library",
        patterns=(r"Fatal Python error: Aborted",),
        signals=frozenset({6}),
    ),
)

CONFIG = Cause(
    name="config",
    weight=35,
    what="refused the run file",
    meaning="The settings, the layout or the launch do not fit together; nothing was trained.",
    next_step="Change what the message names, and submit again. `megatune submit --lint` and `--dry-run` "
    "check without a job.",
    source="megatune's own messages; exit code 2",
)
USER_CODE = Cause(
    name="user_code",
    weight=36,
    what="failed in code of the model or the user",
    meaning="The traceback ends in code that is neither megatune's nor an installed package's.",
    next_step="Correct the code at the quoted place, or take it out of the run.",
    source="the traceback's last frame",
)
SOFTWARE = Cause(
    name="software",
    weight=37,
    what="failed with an error nobody had foreseen",
    meaning="The traceback ends in megatune or in an installed package.",
    next_step="The traceback in the rank's log shows the call. `megatune env` prints the versions for a bug "
    "report.",
    source="the traceback's last line",
)
STOPPED = Cause(
    name="stopped",
    weight=0,
    what="was stopped and has saved",
    meaning="Nothing failed: the run was asked to stop, and what it had trained is saved.",
    next_step="`megatune submit` or `megatune train` goes on from there.",
    source="the stop record of metrics.jsonl",
    of_job=True,
)
UNKNOWN = Cause(
    name="unknown",
    weight=99,
    what="failed, and its log does not say why",
    meaning="None of the known causes shows in the logs.",
    next_step="Read the last lines quoted here and the logs around them (`megatune logs RUN --rank N`).",
    source="the end of the log",
)
