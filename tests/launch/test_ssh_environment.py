import pytest

from megatune.errors import ConfigError
from megatune.launch.ssh_environment import before_python, forwarded_environment, reached_address

HERE = {
    "NCCL_DEBUG": "INFO",
    "HF_TOKEN": "secret",
    "OMP_NUM_THREADS": "4",
    "PYTHONPATH": "/src",
    "CUDA_VISIBLE_DEVICES": "0",
    "DS_ACCELERATOR": "cpu",
    "HOME": "/root",
    "http_proxy": "http://proxy",
}


def test_settings_of_the_libraries_go_along_and_what_is_of_this_host_stays():
    assert sorted(forwarded_environment(HERE, [])) == [
        "HF_TOKEN",
        "NCCL_DEBUG",
        "OMP_NUM_THREADS",
        "PYTHONPATH",
    ]


def test_what_the_user_names_goes_along_too():
    assert forwarded_environment(HERE, ["http_proxy", "DS_ACCELERATOR"])["http_proxy"] == "http://proxy"
    assert forwarded_environment(HERE, ["DS_ACCELERATOR"])["DS_ACCELERATOR"] == "cpu"


def test_a_named_variable_that_is_not_set_is_refused():
    with pytest.raises(ConfigError, match=r"launch\.forward_env names A, B, not set"):
        forwarded_environment(HERE, ["A", "NCCL_DEBUG", "B"])


def test_only_what_the_interpreter_needs_to_start_is_seen_in_a_list_of_processes():
    assert before_python(HERE) == {"PYTHONPATH": "/src"}


def test_sshd_tells_the_address_that_was_reached():
    assert reached_address({"SSH_CONNECTION": "10.0.0.1 50000 10.0.0.2 22"}) == "10.0.0.2"
    assert reached_address({}) is None
