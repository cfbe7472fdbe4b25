"""DeepSpeed's folders without DeepSpeed: as its files are laid out, for tests that plant something in them."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

NAMES = [
    "transformer.wpe.weight",
    "transformer.ln_f.bias",
    "transformer.h.0.mlp.c_fc.weight",
    "transformer.h.0.attn.c_attn.weight",
]
"""Some of the parameters."""
_RANKS = 2


def write_zero_folder(
    folder: Path, model: Path, *, prefix: str = "", frozen: str | None = None, stage: int = 3
) -> Path:
    """`global_step2` of two ranks, with random moments. `frozen`: a parameter that was not trained."""
    folder.mkdir(parents=True)
    weights = _weights(model)
    trained = {name: tensor for name, tensor in weights.items() if name != frozen}
    generator = torch.Generator().manual_seed(3)
    moments = {
        kind: {n: torch.rand(t.shape, generator=generator) for n, t in trained.items()}
        for kind in ("exp_avg", "exp_avg_sq")
    }
    for rank in range(_RANKS):
        model_state: dict[str, Any] = {
            "param_shapes": [{prefix + name: tensor.shape for name, tensor in trained.items()}],
            "frozen_param_shapes": {frozen: weights[frozen].shape} if frozen else {},
            "frozen_param_fragments": {frozen: _piece(weights[frozen], rank)} if frozen else {},
            "global_steps": 2,
        }
        flat = {
            kind: torch.cat([_piece(tensor, rank) for tensor in held.values()])
            for kind, held in moments.items()
        }
        optimizer = {
            "zero_stage": stage,
            "partition_count": _RANKS,
            "dynamic_loss_scale": False,
            "optimizer_state_dict": {
                "state": {0: {"step": torch.tensor(2.0), **flat}},
                "param_groups": [{"lr": 0.1}],
            },
            "fp32_flat_groups": [torch.cat([_piece(tensor, rank) for tensor in trained.values()])],
        }
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        torch.save(model_state, folder / f"{name}_model_states.pt")
        torch.save({"optimizer_state_dict": optimizer}, folder / f"{name}_optim_states.pt")
    return folder


def write_universal_folder(folder: Path, model: Path) -> Path:
    """`global_step2_universal`, whose moments are those weights once more."""
    for name, tensor in _weights(model).items():
        own = folder / "zero" / name
        own.mkdir(parents=True)
        for kind in ("fp32", "exp_avg", "exp_avg_sq"):
            torch.save({"param": tensor, "cat_dim": 0}, own / f"{kind}.pt")
    state = {
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(2.0)}}},
        "param_groups": [{"lr": 0.1}],
    }
    torch.save(state, folder / "zero/optimizer_state.pt")
    torch.save({"global_steps": 2}, folder / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    return folder


def _weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


def _piece(tensor: torch.Tensor, rank: int) -> torch.Tensor:
    size = -(-tensor.numel() // _RANKS)
    padded = torch.cat([tensor.flatten(), torch.zeros(size * _RANKS - tensor.numel())])
    return padded[rank * size : (rank + 1) * size].clone()
