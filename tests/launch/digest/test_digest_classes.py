"""Every class of failures is recognised in logs as the programs write them."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from planted import STEPS, Planted, traceback

from megatune.launch.digest.classify import CAUSES
from megatune.launch.digest.program_causes import CONFIG, SOFTWARE, STOPPED, UNKNOWN, USER_CODE

EXITED = "srun: error: n2: task 3: Exited with exit code 1\n"


@dataclass(frozen=True)
class Case:
    name: str
    rank_log: str = ""
    job_log: str | None = EXITED
    state: str | None = "FAILED"
    quoted: str = ""


OOM = traceback(
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 3 has a total capacity of 79.11 GiB "
    "of which 1.21 GiB is free. Process 123 has 77.89 GiB memory in use."
)
CASES = [
    Case("gpu_memory", OOM, quoted="Tried to allocate 2.00 GiB"),
    Case("gpu_memory", traceback("torch.OutOfMemoryError: HIP out of memory. Tried to allocate 512.00 MiB.")),
    Case("gpu_memory", traceback("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")),
    Case("host_memory", STEPS, "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks "
         "have been OOM Killed.\nsrun: error: n2: task 3: Out Of Memory\n", "OUT_OF_MEMORY", "oom_kill event"),
    Case("host_memory", STEPS, "slurmstepd: error: Step 7.0 exceeded memory limit (586072 > 307200), being killed\n"
         "srun: error: n2: task 3: Killed\n",
         "FAILED", "exceeded memory limit"),
    Case("host_memory", STEPS, "srun: error: n2: task 3: Killed\n", "FAILED", "task 3: Killed"),
    Case("host_memory", STEPS, "srun: error: n2: task 3: Exited with exit code 137\n"),
    Case("host_memory", traceback("RuntimeError: [enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't "
                                  "allocate memory: you tried to allocate 4294967296 bytes.")),
    Case("host_memory", traceback("MemoryError")),
    Case("node", traceback("torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered")),
    Case("node", STEPS + "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.\n", quoted="Xid"),
    Case("node", STEPS, "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-23T10:30:05 DUE TO NODE FAILURE, SEE "
         "SLURMCTLD LOG FOR DETAILS ***\n", "NODE_FAIL", "DUE TO NODE FAILURE"),
    Case("node", STEPS, None, "NODE_FAIL", "job 7 is NODE_FAIL"),
    Case("shared_memory", traceback("RuntimeError: unable to write to file </torch_1234_5>: No space left on device; "
                                    "/dev/shm is full")),
    Case("shared_memory", STEPS, "srun: error: n2: task 3: Bus error (core dumped)\n", quoted="Bus error"),
    Case("disk", traceback("OSError: [Errno 28] No space left on device: '/scratch/run/checkpoints'")),
    Case("disk", "megatune: the checkpoint could not be saved; older ones are untouched. rank 3: [Errno 122] Disk "
         "quota exceeded: 'rank-00003.safetensors'\n", quoted="quota"),
    Case("disk", traceback("OSError: [Errno 30] Read-only file system: '/scratch/run/metrics.jsonl'")),
    Case("permission", traceback("PermissionError: [Errno 13] Permission denied: '/data/private/train.jsonl'")),
    Case("port", "[W1123 10:00:05.1 socket.cpp:462] [c10d] The server socket has failed to bind to [::]:29500 "
         "(errno: 98 - Address already in use).\n" + traceback(
             "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network "
             "address. "
             "port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use")),
    Case("numeric", "megatune: step 12: loss nan, gradient norm not finite. Training cannot recover from numbers that "
         "are not finite; nothing was saved.\n"),
    Case("hub", traceback("OSError: gpt3 is not a local folder and is not a valid model identifier listed on "
                          "'https://huggingface.co/models'")),
    Case("hub", traceback("huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot "
                          "folder for the specified revision on the local disk and outgoing traffic has been "
                          "disabled.")),
    Case("import", traceback("ModuleNotFoundError: No module named 'flash_attn'")),
    Case("import", "/opt/venv/bin/python3: No module named megatune\n"),
    Case("import", traceback("ImportError: /opt/flash_attn_2_cuda.so: undefined symbol: _ZN3c104cuda9SetDeviceEi")),
    Case("import", "python3: /lib64/libc.so.6: version `GLIBC_2.34' not found (required by python3)\n"),
    Case("device", traceback("torch.AcceleratorError: CUDA error: invalid device ordinal")),
    Case("device", traceback("RuntimeError: The NVIDIA driver on your system is too old (found version 11040).")),
    Case("checkpoint", "megatune: runs/a/checkpoints/step-00000100/rank-00003.safetensors has changed since it "
         "was saved "
         "(its hash differs).\n"),
    Case("checkpoint", traceback("safetensors_rust.SafetensorError: Error while deserializing header: "
         "HeaderTooLarge")),
    Case("data", "megatune: data/train.jsonl:17: this is no JSON: Expecting ',' delimiter\n",
         "srun: error: n2: task 3: Exited with exit code 2\n"),
    Case("data", "megatune: data.train is empty: no row was found in it\n",
         "srun: error: n2: task 3: Exited with exit code 2\n"),
    Case("data", traceback("datasets.exceptions.DatasetGenerationError: An error occurred while generating the "
         "dataset")),
    Case("config", "megatune: submitted.yaml: parallel.tp_size = 3 does not divide the 8 ranks.\n",
         "srun: error: n2: task 3: Exited with exit code 2\n", quoted="tp_size"),
    Case("launcher", "", "slurmstepd: error: execve(): /opt/venv/bin/python: No such file or directory\n"
         "srun: error: n2: task 3: Exited with exit code 2\n", quoted="execve"),
    Case("launcher", "", "Lmod has detected the following error: The following module(s) are unknown: "
         "\"cuda/12.9\"\n"),
    Case("crash", "Fatal Python error: Segmentation fault\n\nCurrent thread 0x00007f (most recent call first):\n"
         '  File "/opt/venv/lib/python3.12/site-packages/deepspeed/ops/adam/cpu_adam.py", line 160 in step\n',
         "srun: error: n2: task 3: Segmentation fault (core dumped)\n"),
    Case("crash", STEPS, "srun: error: n2: task 3: Aborted (core dumped)\n"),
    Case("user_code", traceback("KeyError: 'rope_theta'", '  File '
         '"/home/me/.cache/huggingface/modules/transformers_modules/'
                                'acme/model/modeling_acme.py", line 12, in forward\n    x = self.rope[0]\n')),
    Case("software", traceback("ValueError: not enough values to unpack (expected 2, got 1)")),
    Case("rendezvous", traceback("torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients. "
                                 "3/4 clients joined.")),
    Case("rendezvous", traceback("torch.distributed.DistNetworkError: The client socket has timed out after "
         "600000ms while "
                                 "trying to connect to (n1, 29500).")),
    Case("nccl", traceback("torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3690, "
         "unhandled system "
                           "error, NCCL version 2.27.5\nncclSystemError: System call (e.g. socket, malloc) or "
                           "external "
                           "library call failed or device error.")),
    Case("gloo", traceback("RuntimeError: timed out waiting 600 s for rank 1 of a group of one host")),
    Case("gloo", traceback("RuntimeError: connection closed by peer: rank 1 of a group of one host has ended")),
    Case("gloo", traceback("RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] "
         "Timed out "
                           "waiting 1800000ms for recv operation to complete")),
    Case("time_limit", STEPS, "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-23T10:30:05 DUE TO TIME LIMIT "
         "***\n", "TIMEOUT", "DUE TO TIME LIMIT"),
    Case("time_limit", STEPS, None, "DEADLINE"),
    Case("preemption", STEPS, "slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-11-23T10:30:05 DUE TO "
         "PREEMPTION "
         "***\n", "PREEMPTED"),
    Case("cancelled", STEPS, "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-23T10:30:05 ***\n", "CANCELLED"),
    Case("cancelled", STEPS, "srun: error: n2: task 3: Terminated\n", "CANCELLED"),
    Case("unknown", STEPS + "the end of the world\n", quoted="the end of the world"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[f"{number}-{case.name}" for number, case in enumerate(CASES)])
def test_a_planted_failure_is_recognised(planted: Planted, case: Case):
    planted.ranks = {0: STEPS, 1: STEPS, 2: STEPS, 3: STEPS + case.rank_log}
    planted.job = case.job_log

    found = planted.digest(case.state)

    assert found.cause.name == case.name, found.text
    assert case.quoted in found.text
    assert found.evidence
    assert f"Next: {found.cause.next_step}" in found.text
    if not found.cause.of_job:
        assert found.rank == 3
        assert found.node == "n2"


def test_every_class_has_a_planted_failure():
    names = {cause.name for cause in (*CAUSES, CONFIG, USER_CODE, SOFTWARE, UNKNOWN)}

    assert names - {case.name for case in CASES} == set()
    assert len(names) >= 16


def test_every_class_tells_a_meaning_a_next_step_and_its_source():
    for cause in (*CAUSES, CONFIG, USER_CODE, SOFTWARE, UNKNOWN, STOPPED):
        assert cause.meaning.endswith(".")
        assert cause.next_step.endswith(".")
        assert cause.source


def test_the_documentation_lists_every_class():
    text = (Path(__file__).parents[3] / "docs/status.md").read_text(encoding="utf-8")

    for cause in (*CAUSES, CONFIG, USER_CODE, SOFTWARE, STOPPED, UNKNOWN):
        assert f"| `{cause.name}` | " in text
