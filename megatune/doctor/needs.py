"""What a run will need of disk and host memory, as far as its files tell. Lower bounds, never guesses."""

from megatune.config import Run
from megatune.errors import ModelError, PlanError
from megatune.plan.model_config import read_model_config
from megatune.plan.question import class_head_of
from megatune.plan.states import ELEMENT_BYTES, optimizer_bytes
from megatune.plan.weights import count_model


def num_params_of(run: Run) -> int | None:
    """Parameters of the run's model, by its config.json; None where the planner does not know such a model.

    Of a classifier head whose labels only the rows tell, the fewest that there can be.
    """
    try:
        return count_model(read_model_config(run), class_head_of(run)).num_params
    except (ModelError, PlanError):
        return None  # `train` says so; here the size is unknown


def checkpoint_bytes(run: Run, num_params: int | None) -> int | None:
    """Bytes of one checkpoint: the fp32 weights and the optimizer's moments (`checkpoint/write.py`).

    AdamW has two moments, so 12 bytes a parameter.
    """
    if num_params is None:
        return None
    return num_params * optimizer_bytes(run.train.optimizer, momentum=run.train.momentum)


def host_bytes(run: Run, num_params: int | None, *, on_gpu: bool) -> int | None:
    """Least bytes of host memory over all nodes together; None when the model's size is not known.

    On CPUs the fp32 weights, the moments, and weights and gradients in the run's precision; with
    GPUs what is offloaded of that; what is on a local disk is not counted. What the libraries themselves take comes
    on top.
    """
    states = checkpoint_bytes(run, num_params)
    if num_params is None or states is None:
        return None
    working = num_params * 2 * ELEMENT_BYTES[run.precision]
    if run.parallel.disk_folder is not None:
        states = 0
    if not on_gpu or run.parallel.offload == "all":
        return states + working
    return 0 if run.parallel.offload == "none" else states
