"""Site profiles: what a cluster needs in every job, written once. `slurm/sites/NAME.yaml`.

A profile holds names, numbers and paths only: no text of it is ever run by a shell.
"""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict, ValidationError, field_validator

import megatune
from megatune.config.document import read_document
from megatune.config.fields import Count, CountOrZero, Flag, Section, SlurmMemory, Text
from megatune.config.problems import explain
from megatune.config.settings import Settings
from megatune.errors import ConfigError
from megatune.launch.slurm import text
from megatune.launch.slurm.options import check_additional, check_srun_arguments
from megatune.plan.hardware import ACCELERATORS

CHECKOUT = Path(megatune.__file__).resolve().parents[1]
_ENDINGS = (".yaml", ".yml")


def _checked(check: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(check)


def _text_of(value: object) -> object:
    return str(value) if type(value) is int else value


Names = Annotated[Text, _checked(text.names)]
Absolute = Annotated[str, Strict(), _checked(text.absolute_path)]
Mount = Annotated[str, Strict(), _checked(text.mount)]
VariableName = Annotated[str, Strict(), _checked(text.variable_name)]
VariableValue = Annotated[Text, BeforeValidator(_text_of)]
SrunOption = Annotated[Text, _checked(text.srun_option)]
GpuRequest = Literal["gpus-per-node", "gres", "gpus-per-task", "none"]
Requeue = Literal["requeue", "resubmit", "none"]


class Container(Section):
    """The container that the ranks run in."""

    runtime: Literal["pyxis", "apptainer"] = Field(description="pyxis (srun --container-image) or apptainer.")
    image: Annotated[Text, _checked(text.image)] = Field(
        description="Image: a path, or what the runtime takes.", examples=["/images/megatune.sqsh"]
    )
    mounts: list[Mount] = Field(
        default_factory=list,
        description="Folders to mount: /outside:/inside[:ro].",
        examples=[["/data:/data"]],
    )
    python: Annotated[Text, _checked(text.image)] = Field(
        default="python3", description="Python inside the image, with megatune installed."
    )


class SiteProfile(Section):
    """What one cluster, or one partition of it, needs in every job. The run file's slurm section wins."""

    partition: Names | None = Field(default=None, description="Partition(s).", examples=["gpu"])
    account: Names | None = Field(default=None, description="Account to charge.", examples=["project1"])
    qos: Names | None = Field(default=None, description="Quality of service.", examples=["normal"])
    constraint: Annotated[Text, _checked(text.constraint)] | None = Field(
        default=None, description="Features of the nodes.", examples=["a100"]
    )
    reservation: Names | None = Field(default=None, description="Reservation.", examples=["course"])
    gpu_request: GpuRequest = Field(default="gpus-per-node", description="Which option asks for GPUs here.")
    gpu_type: Annotated[Text, _checked(text.gpu_type)] | None = Field(
        default=None, description="Type of GPU, as Slurm names it.", examples=["a100"]
    )
    gpus_per_node: CountOrZero | None = Field(
        default=None, description="GPUs on each node; 0 for none.", examples=[8]
    )
    cpus_per_node: Count | None = Field(
        default=None, description="CPU cores of each node, shared out over the ranks.", examples=[64]
    )
    mem_per_node: SlurmMemory | None = Field(
        default=None, description="Host memory to ask for on each node; 0 is all of it.", examples=["480G"]
    )
    gpu: Text | None = Field(
        default=None, description="The GPU, as megatune's table of hardware names it.", examples=["a100-80gb"]
    )
    modules: list[Annotated[Text, _checked(text.module_name)]] = Field(
        default_factory=list, description="Modules to load.", examples=[["cuda/12.8"]]
    )
    module_purge: Flag = Field(default=False, description="Drop inherited modules first.")
    source: list[Absolute] = Field(
        default_factory=list,
        description="Files to source in the job, as of a virtual environment.",
        examples=[["/home/me/venv/bin/activate"]],
    )
    python: Absolute | None = Field(
        default=None,
        description="Python of the job; without it the one that submits.",
        examples=["/home/me/venv/bin/python"],
    )
    environment: dict[VariableName, VariableValue] = Field(
        default_factory=dict, description="Environment variables.", examples=[{"NCCL_IB_HCA": "mlx5_0"}]
    )
    network_interface: Annotated[Text, _checked(text.interface)] | None = Field(
        default=None, description="Interface between the nodes, for NCCL and gloo.", examples=["ib0"]
    )
    scratch: Annotated[Text, _checked(text.scratch)] = Field(
        default="/tmp", description="Folder on each node's own disk: a path, or $NAME of a variable there."
    )
    container: Container | None = Field(default=None, description="Run the ranks in a container.")
    mpi: Annotated[Text, _checked(text.module_name)] | None = Field(
        default=None, description="srun --mpi; megatune itself needs none.", examples=["none"]
    )
    requeue: Requeue = Field(
        default="requeue", description="How a job queues again: itself, as a new job, or not at all."
    )
    exclusive: Flag = Field(default=False, description="Whole nodes.")
    additional_parameters: dict[Text, Text | int | bool] = Field(
        default_factory=dict, description="Further sbatch options, by their long names."
    )
    srun_args: list[SrunOption] = Field(default_factory=list, description="Further options of srun.")

    @field_validator("gpu")
    @classmethod
    def _known_gpu(cls, name: str | None) -> str | None:
        known = [row.name for row in ACCELERATORS]
        if name is not None and name not in known:
            raise ValueError(f"one of {', '.join(known)}")
        return name

    @field_validator("additional_parameters")
    @classmethod
    def _options(cls, given: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        problems = check_additional(given)
        if problems:
            raise ValueError("options of sbatch that megatune does not set itself: " + "; ".join(problems))
        return given

    @field_validator("srun_args")
    @classmethod
    def _srun(cls, given: list[str]) -> list[str]:
        problems = check_srun_arguments(given)
        if problems:
            raise ValueError("options of srun that megatune does not set itself: " + "; ".join(problems))
        return given


def load_site(name: str, *, run_file: Path, home: Path | None = None) -> SiteProfile:
    """The site profile `name`: a path, or the name of a file in one of `site_folders`.

    Raises ConfigError when there is none, or with every problem of the file at once.
    """
    path = find_site(name, run_file=run_file, home=home)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"the site profile cannot be read: {error}"], source=str(path)) from error
    document = read_document(content, source=str(path))
    try:
        return SiteProfile.model_validate(document.values)
    except ValidationError as error:
        settings = Settings(
            values=document.values,
            origins={key: f"{path.name}:{line}" for key, line in document.lines.items()},
        )
        schema = SiteProfile.model_json_schema()
        raise ConfigError(explain(error, settings, schema=schema), source=str(path)) from error


def site_folders(run_file: Path, home: Path | None = None) -> list[Path]:
    """Where profiles are looked for, in this order."""
    own = (home or Path.home()) / ".config/megatune/sites"
    below = [base / "slurm/sites" for base in (run_file.absolute().parent, Path.cwd(), CHECKOUT)]
    return list(dict.fromkeys([*below, own]))


def find_site(name: str, *, run_file: Path, home: Path | None = None) -> Path:
    """The file of the profile `name`. Raises ConfigError naming the profiles that there are."""
    if "/" in name or name.endswith(_ENDINGS):
        path = Path(name)
        if path.is_file():
            return path
        raise ConfigError([f"slurm.site = {name}: there is no such file."])
    folders = site_folders(run_file, home)
    for folder in folders:
        for ending in _ENDINGS:
            if (folder / (name + ending)).is_file():
                return folder / (name + ending)
    raise ConfigError([_no_site(name, folders)])


def _no_site(name: str, folders: Sequence[Path]) -> str:
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    near = get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    there = f"There are {', '.join(known)}." if known else "There is none at all."
    return (
        f"slurm.site = {name}: no site profile has this name.{hint} {there} Looked in "
        f"{', '.join(map(str, folders))}; slurm/sites/example.yaml is one to start from."
    )
