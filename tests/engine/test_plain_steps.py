"""Plain torch (ZeRO stage 0) leaves out what DeepSpeed's optimizers leave out."""

from pathlib import Path

import pytest
import torch
from parity_steps import SEQUENCES, batches, plain_engine, run_steps, tiny_run
from tiny_models import EXPERTS, write_tiny_model

from megatune.engine.optimizers import parameter_groups


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_changes_no_weight(
    session_folder: Path, precision: str, value: float
) -> None:
    engine = plain_engine(tiny_run(str(write_tiny_model("llama", session_folder)), precision=precision))
    first, bad, last = batches(3)
    run_steps(engine, [first], accumulation=1, learning_rate=0.1)
    before = {name: weight.clone() for name, weight in engine.weights(master=True)}

    engine.backward(engine.loss(bad) / SEQUENCES, is_last=True)
    next(iter(engine._masters.values())).grad.view(-1)[0] = value
    outcome = engine.step(0.1)

    assert outcome.skipped
    assert outcome.grad_norm is None
    assert all(torch.equal(weight, before[name]) for name, weight in engine.weights(master=True))
    (loss,), _ = run_steps(engine, [last], accumulation=1, learning_rate=0.1)
    assert loss < 10


def test_norms_and_biases_are_not_decayed_whatever_their_shape() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, config = EXPERTS["gpt_oss"]
    command_r = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "use_qk_norm": True}
    for config_of in (
        AutoConfig.for_model(kind, **config),
        AutoConfig.for_model("cohere", **command_r, vocab_size=50, intermediate_size=64),
    ):
        named = dict(AutoModelForCausalLM.from_config(config_of).named_parameters())
        decayed, others = parameter_groups(named, 0.1, unread=frozenset())
        names = {id(parameter): name for name, parameter in named.items()}
        assert {names[id(p)] for p in others["params"]} == {
            name for name in named if "norm" in name or "bias" in name or "sinks" in name
        }
        assert decayed["weight_decay"] == 0.1
        assert others["weight_decay"] == 0.0
