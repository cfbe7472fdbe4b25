"""The ledger's activation bytes are those of the tensors that autograd keeps, family by family."""

from typing import Any

import pytest
import torch
from tiny_models import TINY
from transformers import AutoConfig, AutoModelForCausalLM

from megatune.model.conv1d import conv1d_to_linear
from megatune.plan.activations import Kernel, Tokens, block_bytes, korthikanti_bytes
from megatune.plan.model_types import MODEL_TYPES
from megatune.plan.weights import count_model

_BATCH, _SEQ = 2, 48
_COUNTED = {
    **TINY,
    "cohere, normed heads": ("cohere", {**TINY["cohere"][1], "use_qk_norm": True}),
    "stablelm, normed heads": ("stablelm", {**TINY["stablelm"][1], "qk_layernorm": True}),
}
_LAYER_KEYS = {"gpt2": "n_layer", "gptj": "n_layer", "bloom": "n_layer", "gpt_neo": "num_layers"}


def _kept_bytes(kind: str, config: dict[str, Any], num_layers: int, kernel: str) -> int:
    """Bytes of all storages that the forward of a bf16 model leaves for its backward, weights aside."""
    config = {**config, _LAYER_KEYS.get(kind, "num_hidden_layers"): num_layers}
    if kind == "gpt_neo":
        config["attention_types"] = [[["global"], num_layers]]
    for key, value in (("layer_types", "full_attention"), ("no_rope_layers", 1)):
        if key in config:
            config[key] = [value] * num_layers
    model: Any = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **config), dtype=torch.bfloat16, attn_implementation=kernel
    )
    conv1d_to_linear(model)
    held = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage  # holding it keeps the address from being used again
        return tensor

    ids = torch.arange(_BATCH * _SEQ).reshape(_BATCH, _SEQ) % 90
    more = {} if kind == "bloom" else {"position_ids": torch.arange(_SEQ).expand(_BATCH, _SEQ)}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.train()(input_ids=ids, use_cache=False, **more)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", sorted(_COUNTED))
def test_a_blocks_activations_are_exact(name: str, kernel: Kernel) -> None:
    kind, config = _COUNTED[name]
    if kernel == "sdpa" and not MODEL_TYPES[kind].has_sdpa:
        pytest.skip("transformers has no sdpa for this type")
    measured = _kept_bytes(kind, config, 3, kernel) - _kept_bytes(kind, config, 2, kernel)

    model = count_model(AutoConfig.for_model(kind, **config).to_dict())
    tokens = Tokens(batch=_BATCH, seq=_SEQ, element_bytes=2, kernel=kernel)

    # What does not grow with the tokens: weights of norms in fp32, broadcast scales and the like.
    one_off = max(512, 4 * sum(w.num_params for w in model.block if w.component == "norm"))
    planned = block_bytes(model, tokens, tensor_parallel=1)
    assert abs(planned - measured) <= one_off, (planned, measured)


_GPT = {"22B": (6144, 64, 48, 4), "175B": (12288, 96, 96, 1), "530B": (20480, 128, 105, 1),
        "1T": (25600, 160, 128, 1)}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("22B", (59.25, 39.5625, 29.25, 9.5625, 4.5)),
        ("175B", (51.75, 32.0625, 29.25, 9.5625, 4.5)),
        ("530B", (86.1328125, 50.244140625, 53.3203125, 17.431640625, 8.203125)),
        ("1T", (131.25, 76.5625, 81.25, 26.5625, 12.5)),
    ],
)
def test_korthikantis_table_of_activations_is_reproduced(name: str, gib: tuple[float, ...]) -> None:
    hidden, heads, layers, batch = _GPT[name]
    variants = ("none", "sequence", "selective", "sequence+selective", "full")

    ours = [
        layers * korthikanti_bytes(seq=2048, batch=batch, hidden=hidden, heads=heads, tensor_parallel=8, variant=v)
        / 2**30
        for v in variants
    ]  # fmt: skip

    assert ours == pytest.approx(list(gib), rel=1e-12)


def test_selective_recomputation_saves_the_share_the_paper_states() -> None:
    def layer(variant: str) -> float:
        return korthikanti_bytes(seq=2048, batch=1, hidden=12288, heads=96, variant=variant)

    assert 1 - layer("selective") / layer("none") == pytest.approx(80 / 114)
