import pytest

from megatune.engine.accelerator import device_index
from megatune.errors import LaunchError


@pytest.mark.parametrize(
    ("local_rank", "ranks_here", "visible", "index"),
    [
        (3, 4, 4, 3),  # --gpus-per-node=4, --gres=gpu:4
        (1, 2, 8, 1),  # fewer ranks than GPUs
        (3, 4, 1, 0),  # --gpus-per-task=1
        (0, 1, 1, 0),
    ],
)
def test_a_rank_takes_its_own_gpu_however_slurm_shows_them(local_rank, ranks_here, visible, index):
    assert device_index(local_rank, ranks_here, num_visible=visible) == index


def test_more_ranks_than_gpus_are_refused():
    with pytest.raises(LaunchError, match=r"4 ranks on this node see 2 GPU\(s\)"):
        device_index(3, 4, num_visible=2)
