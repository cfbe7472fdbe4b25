"""What a launched rank holds against its run file and its machine."""

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_run

from megatune.config import load_run
from megatune.launch.rank_info import RankInfo
from megatune.train.launched import contradictions


def rank_of(launcher: str, **changes: Any) -> RankInfo:
    """Rank 3 of 8 on two nodes of four."""
    place = {"rank": 3, "local_rank": 3, "world_size": 8, "local_world_size": 4, "num_nodes": 2}
    return RankInfo(master_addr="n1", master_port=20000, launcher=launcher, **{**place, **changes})


def found(tmp_path: Path, rank: RankInfo, num_gpus: int, **sections: Any) -> list[str]:
    return contradictions(
        load_run(write_run(tmp_path / "run.yaml", tmp_path, **sections), []).run, rank, num_gpus
    )


@pytest.mark.parametrize("launcher", ["slurm", "mpi", "environment"])
@pytest.mark.parametrize("num_gpus", [0, 1, 4, 8])
def test_a_rank_may_see_no_gpu_its_own_or_all_of_the_node(
    tmp_path: Path, launcher: str, num_gpus: int
) -> None:
    assert found(tmp_path, rank_of(launcher), num_gpus) == []


@pytest.mark.parametrize(
    ("launcher", "num_gpus", "fix"),
    [
        ("torchrun", 1, "torchrun --nproc_per_node 1"),
        ("slurm", 2, "srun --ntasks-per-node 2"),
        ("mpi", 3, "mpirun -n 3"),
    ],
)
def test_more_ranks_than_gpus_are_told_with_the_launchers_own_option(
    tmp_path: Path, launcher: str, num_gpus: int, fix: str
) -> None:
    (problem,) = found(tmp_path, rank_of(launcher), num_gpus)
    assert fix in problem


def test_another_number_of_nodes_than_the_run_file_names_is_told(tmp_path: Path) -> None:
    (problem,) = found(tmp_path, rank_of("slurm"), 0, launch={"nodes": 4})
    assert "launch.nodes is 4, but slurm started 8 ranks on 2 node(s)" in problem


def test_nodes_with_unequal_numbers_of_ranks_are_counted_by_the_launcher(tmp_path: Path) -> None:
    uneven = rank_of("slurm", world_size=7, local_world_size=1, local_rank=0, num_nodes=4)
    assert found(tmp_path, uneven, 0, launch={"nodes": 4}) == []
