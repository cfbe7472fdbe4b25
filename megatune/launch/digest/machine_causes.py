"""Causes outside of the program: memory, disks, nodes, the network, Slurm. `weight`s are explained in "
"cause.py."""

from megatune.launch.digest.cause import Cause

MACHINE_CAUSES: tuple[Cause, ...] = (
    Cause(
        name="gpu_memory",
        weight=10,
        what="ran out of GPU memory",
        meaning="The model states, activations and buffers of this rank do not fit its GPU.",
        next_step="Lower train.per_device_train_batch_size (train.global_batch_size keeps the batch), set "
        "model.gradient_checkpointing=true, use more ranks or a higher parallel.tp_size, or "
        "parallel.offload=optimizer.",
        source="torch: c10/cuda/CUDACachingAllocator.cpp; cuBLAS and NCCL status names",
        patterns=(
            r"\bOutOfMemoryError\b",
            r"(?:CUDA|HIP|XPU) out of memory",
            r"(?:CUDA|HIP) error: out of memory",
            r"Cuda failure.*out of memory",
            r"CU(?:BLAS|DNN|SOLVER)_STATUS_ALLOC_FAILED",
            r"(?:cuda|hip)Error(?:MemoryAllocation|OutOfMemory)",
            r"^megatune: out of GPU memory",
            r"of GPU memory a rank by the plan, instead of",  # train/out_of_memory.py: what would fit
        ),
    ),
    Cause(
        name="host_memory",
        weight=12,
        what="ran out of host memory",
        meaning="The processes of a node used more main memory than the job had asked for, or than there is.",
        next_step="Ask for more with slurm.mem (0 takes a whole node), use more nodes, or hold less: fewer "
        "ranks a "
        "node, or parallel.offload=none where the optimizer was offloaded.",
        source="slurmstepd and srun messages; the kernel's oom-kill lines; torch's CPU allocator; Python",
        patterns=(
            r"oom[-_]kill",
            r"\bOut Of Memory\b|Out of memory: Killed process",
            r"[Ee]xceeded (?:job |step )?memory limit",
            r"^MemoryError\b|_ArrayMemoryError|std::bad_alloc",
            r"DefaultCPUAllocator: (?:can't allocate|not enough) memory",
            r"(?<!ibv_reg_mr )Cannot allocate memory",
            r"DataLoader worker .* is killed by signal: Killed",
            r"^megatune: out of host memory",
            r"of host memory a rank by the plan, instead of",
        ),
        states=frozenset({"OUT_OF_MEMORY"}),
    ),
    Cause(
        name="node",
        weight=13,
        what="met a broken GPU",
        meaning="The driver reports a hardware fault of a GPU: its memory, or its link to the machine.",
        next_step="Leave the node out with slurm.exclude, tell the administrators, and submit again.",
        source="NVIDIA's Xid list; CUDA runtime error texts; nvidia-smi",
        patterns=(
            r"NVRM: Xid|\bXid \d+|Xid \(PCI",
            r"[Uu]ncorrectable (?:NVLink|ECC) error|ECC error encountered",
            r"GPU .*fallen off the bus|fell off the bus|GPU is lost",
            r"Unable to determine the device handle for GPU",
        ),
    ),
    Cause(
        name="shared_memory",
        weight=14,
        what="found no room in /dev/shm",
        meaning="NCCL and data loading share memory between processes of a node in /dev/shm, which is full "
        "or small.",
        next_step="Clear /dev/shm of leftovers of dead jobs; in a container, give it more (`--shm-size`, "
        "`--ipc=host`).",
        source="NCCL's shmutils.cc; torch's data loader; signal names of the C library",
        patterns=(
            r"/dev/shm\S* .*(?:No space|failed)|failed to extend /dev/shm",
            r"insufficient shared memory|unable to (?:open|mmap|write).*shm|shm_open",
            r"No space left on device.*/dev/shm|/dev/shm.*No space left on device",
            r"[Bb]us error",
        ),
        signals=frozenset({7}),
    ),
    Cause(
        name="disk",
        weight=16,
        what="could not use a disk",
        meaning="A file system is full, over quota, read-only or failing. Checkpoints that were complete "
        "stay so.",
        next_step="Free space or raise the quota (`df -h`, `df -i`, `quota -s`), lower "
        "checkpoint.save_total_limit, or "
        "move train.output_dir; then start the run again: it goes on from its newest checkpoint.",
        source="error texts of the C library: ENOSPC, EDQUOT, EROFS, EIO, ESTALE, EFBIG",
        patterns=(
            r"[Nn]o space left (?:on device|to )|\bENOSPC\b|Errno 28\b",
            r"[Qq]uota exceeded|\bEDQUOT\b|Errno 122\b",
            r"Read-only file system|\bEROFS\b|Errno 30\b",
            r"Input/output error|Errno 5\]|Stale (?:NFS )?file handle|Errno 116\b|File too large|Errno 27\b",
            r"checkpoint .*needs? .*(?:free|space)",
        ),
    ),
    Cause(
        name="permission",
        weight=18,
        what="was not allowed to use a file",
        meaning="The user of the job may not read, write or run what the line names, on that node.",
        next_step="Check owner and mode of the path on the compute node (`srun ls -ld PATH`), and that it "
        "is the same file "
        "system there.",
        source="error texts of the C library: EACCES, EPERM",
        patterns=(
            r"[Pp]ermission denied|Errno 13\b|\bEACCES\b|PermissionError|Errno 1\] Operation not permitted",
        ),
    ),
    Cause(
        name="node",
        weight=33,
        what="lost a node",
        meaning="A node of the job went down or could not be reached, and its ranks with it.",
        next_step="Submit the run again: it goes on from its newest checkpoint. If the node fails again, "
        "leave it out with "
        "slurm.exclude (`sinfo -R` tells why nodes are down).",
        source="slurmctld, slurmstepd and srun messages; Slurm's job states",
        patterns=(
            r"DUE TO NODE FAILURE|[Nn]ode failure on|\bNODE_FAIL\b|^megatune: lost \S+$",
            r"srun: error: .*Node (?:\S+ )?(?:is )?(?:down|not responding)",
        ),
        states=frozenset({"NODE_FAIL", "BOOT_FAIL"}),
        of_job=True,
    ),
    Cause(
        name="time_limit",
        weight=40,
        what="reached the time limit",
        meaning="Slurm ended the job at its time limit before the run had stopped by itself.",
        next_step="Submit it again: it goes on from its newest checkpoint. A longer slurm.time, a longer "
        "slurm.signal_delay_s (for slow saves) or `megatune submit --chain auto` avoid the loss.",
        source="slurmstepd: `CANCELLED AT ... DUE TO TIME LIMIT`; Slurm's job states",
        patterns=(r"DUE TO TIME LIMIT",),
        states=frozenset({"TIMEOUT", "DEADLINE"}),
        of_job=True,
    ),
    Cause(
        name="preemption",
        weight=40,
        what="was preempted",
        meaning="Slurm gave the nodes to a job of higher priority and did not queue this one again.",
        next_step="Submit it again with slurm.requeue=true, or in a partition or QOS that is not preempted.",
        source="slurmstepd: `CANCELLED AT ... DUE TO PREEMPTION`; Slurm's job states",
        patterns=(r"DUE TO (?:JOB )?PREEMPTION",),
        states=frozenset({"PREEMPTED"}),
        of_job=True,
    ),
    Cause(
        name="cancelled",
        weight=41,
        what="was cancelled",
        meaning="Its user or an administrator ended it (scancel).",
        next_step="`megatune submit` starts it again; it goes on from its newest checkpoint.",
        source="slurmstepd: `*** JOB 1 ON n1 CANCELLED AT ... ***`; Slurm's job states",
        # A cancelled STEP says nothing: srun cancels it itself when one of its tasks has failed.
        patterns=(r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+ \*\*\*", r"^megatune: cancelled by the user"),
        states=frozenset({"CANCELLED"}),
        of_job=True,
    ),
    Cause(
        name="host_memory",
        weight=50,
        what="was killed from outside",
        meaning="It got SIGKILL and could say nothing. On a node this is nearly always the kernel, which is "
        "out of host "
        "memory.",
        next_step="Ask for more with slurm.mem, or hold less in main memory: fewer ranks a node, "
        "parallel.offload=none. `dmesg` on the node, or `sacct -j JOB --format=JobID,MaxRSS`, shows it.",
        source="signal 9; exit code 137 of a shell or container",
        signals=frozenset({9}),
    ),
    Cause(
        name="rendezvous",
        weight=55,
        what="waited in vain for the others",
        meaning="The ranks did not all find each other at the start: one did not come, or the network "
        "between the nodes "
        "does not let them.",
        next_step="Look at the logs of the ranks that are missing; `megatune doctor` inside the allocation "
        "names the node, "
        "interface or port.",
        source="torch: TCPStore and its exceptions; getaddrinfo's error texts",
        is_secondary=True,
        patterns=(
            r"\d+/\d+ clients joined|Rendezvous(?:Timeout|Connection)Error",
            r"client socket has (?:timed out|failed to connect)",
            r"Temporary failure in name resolution|Name or service not known|No route to host",
        ),
    ),
    Cause(
        name="nccl",
        weight=60,
        what="failed in communication (NCCL)",
        meaning="A collective over GPUs failed or timed out: a rank was gone or stuck, or the network "
        "between nodes broke.",
        next_step="Look at the first rank named here, and at any rank whose log ends early; `megatune "
        "doctor` measures "
        "the links; NCCL_DEBUG=INFO in the site's environment shows more.",
        source="NCCL's result names; torch: ProcessGroupNCCL.cpp",
        is_secondary=True,
        patterns=(
            r"\bnccl(?:SystemError|UnhandledCudaError|RemoteError|InternalError|InvalidUsage)\b|NCCL error|NCCL WARN",
            r"ProcessGroupNCCL|Watchdog caught collective operation timeout",
        ),
    ),
    Cause(
        name="gloo",
        weight=61,
        what="failed in communication (gloo)",
        meaning="A collective over CPUs failed or timed out: a rank was gone or stuck, or the network "
        "between nodes broke.",
        next_step="Look at the first rank named here, and at any rank whose log ends early: a process that "
        "is killed leaves "
        "no word. `megatune doctor` measures the links.",
        source="gloo's transport; torch: ProcessGroupGloo.cpp, TCPStore.cpp",
        is_secondary=True,
        patterns=(
            r"gloo/transport|[Gg]loo .*(?:fail|timed out|timeout)|ProcessGroupGloo",
            r"[Cc]onnection (?:closed|reset) by peer|[Tt]imed out waiting [\d.]+ ?m?s|[Bb]roken pipe|DistNetworkError",
            r"DistBackendError|Socket [Tt]imeout|failed to recv, got 0 bytes",
        ),
    ),
)
