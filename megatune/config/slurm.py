"""The `slurm` section of the run file: the job that `megatune submit` hands in."""

from typing import Literal

from pydantic import Field

from megatune.config.fields import Count, CountOrZero, Flag, Section, SlurmMemory, SlurmTime, Text


class SlurmSection(Section):
    """The Slurm job of `megatune submit`, by sbatch's names. What is not given comes from the site profile."""

    site: Text | None = Field(
        default=None,
        description="Site profile: a name in slurm/sites, or a file's path.",
        examples=["example"],
    )
    partition: Text | None = Field(default=None, description="Partition(s).", examples=["gpu"])
    account: Text | None = Field(default=None, description="Account to charge.", examples=["project1"])
    qos: Text | None = Field(default=None, description="Quality of service.", examples=["normal"])
    constraint: Text | None = Field(default=None, description="Features of the nodes.", examples=["a100"])
    reservation: Text | None = Field(default=None, description="Reservation.", examples=["course"])
    nodes: Count = Field(default=1, description="Nodes of the job.")
    gpus_per_node: CountOrZero | None = Field(
        default=None, description="GPUs on each node; 0 trains on CPUs.", examples=[8]
    )
    cpus_per_task: Count | None = Field(default=None, description="CPU cores for each rank.", examples=[8])
    mem: SlurmMemory | None = Field(default=None, description="Host memory of each node.", examples=["256G"])
    time: SlurmTime | None = Field(
        default=None, description="Time limit: HH:MM:SS, D-HH:MM:SS or minutes.", examples=["12:00:00"]
    )
    signal_delay_s: CountOrZero = Field(
        default=300, description="Seconds before the time limit at which the run saves and stops."
    )
    requeue: Flag = Field(default=True, description="Queue the job again when it is cut short.")
    max_restarts: CountOrZero = Field(
        default=20, description="How often a job is queued again before it is given up."
    )
    preflight: Flag = Field(
        default=False, description="Run `megatune doctor` on the nodes first, at most two minutes."
    )
    array_parallelism: Count | None = Field(
        default=None, description="Runs of a job array at a time.", examples=[4]
    )
    exclude: Text | None = Field(default=None, description="Nodes not to use.", examples=["node[07,12]"])
    nodelist: Text | None = Field(default=None, description="Nodes to use.", examples=["node[01-04]"])
    job_name: Text | None = Field(default=None, description="Name in the queue.", examples=["finetune"])
    container: Literal["none", "site"] = Field(
        default="site", description="none: not in the container of the site profile."
    )
    additional_parameters: dict[Text, Text | int | bool] = Field(
        default_factory=dict,
        description="Further sbatch options, by their long names; true for one without a value.",
        examples=[{"mail-type": "END"}],
    )
    srun_args: list[Text] = Field(
        default_factory=list, description="Further options of srun, one each.", examples=[["--mpi=pmix"]]
    )
