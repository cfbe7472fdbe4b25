"""A method of DeepSpeed that is gone is noticed before anything is put in its place."""

import pytest

from megatune.engine.leave_out import overflowing
from megatune.engine.replacing import method_of, replace_method
from megatune.errors import VersionError


class Optimizer:
    """As a later DeepSpeed might have it."""

    def step(self) -> str:
        return "theirs"


def test_a_method_is_replaced_on_this_object_only() -> None:
    optimizer = Optimizer()
    usual = method_of(optimizer, "step")
    replace_method(optimizer, "step", lambda: f"ours, {usual()}")
    assert (optimizer.step(), Optimizer().step()) == ("ours, theirs", "theirs")


def test_a_method_that_is_gone_is_told_with_the_version_to_install() -> None:
    optimizer = Optimizer()
    with pytest.raises(
        VersionError, match=r"Optimizer has no method _post_step.*pip install 'deepspeed.*0\.19"
    ):
        replace_method(optimizer, "_post_step", lambda: None)
    assert not hasattr(optimizer, "_post_step")


def test_a_step_cannot_be_left_out_of_an_optimizer_that_looks_for_overflows_nowhere() -> None:
    with pytest.raises(VersionError, match="check_overflow"), overflowing(Optimizer()):
        pass
