import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatune.errors import LaunchError
from megatune.launch.nodelist import expand_nodelist, expand_task_counts


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("node[008-010,3]", ["node008", "node009", "node010", "node3"]),
        ("a[1-2],login-0,b[07]", ["a1", "a2", "login-0", "b07"]),
        ("r[1-2]c[0-1]-ib0", ["r1c0-ib0", "r1c1-ib0", "r2c0-ib0", "r2c1-ib0"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
    ],
)
def test_a_list_of_hosts_is_written_out_in_its_order(text, hosts):
    assert expand_nodelist(text) == hosts


@pytest.mark.parametrize(
    "text", ["", "n[", "n[1-", "n[]", "n[2-1]", "n[a-b]", "n]1[", "n[1,,2]", "a,,b", "n[0-999999999]"]
)
def test_what_is_no_list_of_hosts_is_refused(text):
    with pytest.raises(LaunchError, match="no list of hosts"):
        expand_nodelist(text)


_NUMBERS = st.lists(st.integers(0, 300), min_size=1, max_size=40, unique=True)
_NAMES = st.from_regex(r"[a-z][a-z-]{0,5}", fullmatch=True)


@given(_NAMES, _NUMBERS, st.integers(1, 5), st.sampled_from(["", "-ib0", "x"]))
def test_writing_out_undoes_slurms_short_form(prefix, numbers, width, suffix):
    hosts = [f"{prefix}{number:0{width}d}{suffix}" for number in numbers]

    assert expand_nodelist(f"{prefix}[{_short(numbers, width)}]{suffix}") == hosts


def _short(numbers, width):
    """Slurm's own form: neighbours of the same width become a range."""
    parts = []
    for number in numbers:
        text = f"{number:0{width}d}"
        if parts and int(parts[-1][1]) + 1 == number and len(parts[-1][1]) == len(text):
            parts[-1] = (parts[-1][0], text)
        else:
            parts.append((text, text))
    return ",".join(first if first == last else f"{first}-{last}" for first, last in parts)


@given(st.text(alphabet="n01[],- \n٣", max_size=12))
def test_any_text_gives_hosts_or_a_launch_error(text):
    try:
        hosts = expand_nodelist(text)
    except LaunchError:
        return
    assert all(host and not set(host) & set("[],") for host in hosts)


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 9)), min_size=1, max_size=6))
def test_task_counts_are_written_out(groups):
    text = ",".join(f"{tasks}(x{nodes})" if nodes > 1 else str(tasks) for tasks, nodes in groups)

    assert expand_task_counts(text) == [tasks for tasks, nodes in groups for _ in range(nodes)]


@pytest.mark.parametrize("text", ["", "2(x", "2(3)", "x2", "2,,1", "1(x999999999)"])
def test_what_is_no_task_count_is_refused(text):
    with pytest.raises(LaunchError, match="no numbers of tasks"):
        expand_task_counts(text)
