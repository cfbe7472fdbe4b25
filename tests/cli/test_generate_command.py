"""megatune generate: where prompts come from, how answers are written and shown, and what is refused."""

import builtins
import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import assert_refused, megatune, write_model

from megatune.cli.generate import GenerateOptions, generate_answers
from megatune.cli.prompts import lines_of_input
from megatune.errors import ConfigError, UserError
from megatune.evaluate.decoding import Decoding
from megatune.launch.run_folder import RunFolder


@pytest.fixture
def model(session_folder: Path) -> Path:
    return write_model(session_folder / "evaluate", "llama")


def test_answers_come_from_the_command_line_a_file_and_every_way_of_decoding(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("The capital\n\n2 + 2\n")
    asked = GenerateOptions(chat=False, tensor_parallel=1, as_json=True, stream=False)
    found = []
    for decoding in (
        Decoding(max_new_tokens=6),
        Decoding(max_new_tokens=6, num_beams=3),
        Decoding(max_new_tokens=6, do_sample=True, seed=3),
        Decoding(max_new_tokens=6, do_sample=True, seed=3),
    ):
        generate_answers(model, ["Once upon"], file, decoding, asked)
        found.append(json.loads(capsys.readouterr().out)["answers"])

    assert [row["prompt"] for row in found[0]] == ["Once upon", "The capital", "2 + 2"]
    assert found[2] == found[3], "the seed decides what is drawn"
    assert found[0] != found[2]


def test_a_stream_prints_what_the_whole_answer_is(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stream in (True, False):
        asked = GenerateOptions(chat=True, tensor_parallel=1, as_json=False, stream=stream)
        generate_answers(model, ["Once upon"], None, Decoding(max_new_tokens=6), asked)
    streamed, whole = capsys.readouterr().out.split("> Once upon")[1:]

    assert streamed.split() == whole.split()


@pytest.fixture
def converse(model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`converse(lines, chat=..., max_new_tokens=...) -> (answers, what was said beside them)`."""

    def run(lines: list[str], *, chat: bool = True, max_new_tokens: int = 5) -> tuple[list[str], str]:
        turns = iter(lines)

        def line(_: str) -> str:
            try:
                return next(turns)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(builtins, "input", line)
        asked = GenerateOptions(chat=chat, tensor_parallel=1, as_json=False, stream=False)
        generate_answers(model, [], None, Decoding(max_new_tokens=max_new_tokens), asked)
        shown = capsys.readouterr()
        return shown.out.rstrip("\n").split("\n"), shown.err

    return run


def test_a_conversation_at_the_terminal_remembers_what_was_said(converse: Any) -> None:
    (first, _, again), _ = converse(["Hello", "And now?", "", "Hello"])

    assert first == again, "an empty line forgets"


@pytest.mark.parametrize("chat", [True, False])
def test_a_line_that_does_not_fit_is_told_and_the_conversation_goes_on(converse: Any, chat: bool) -> None:
    (first, after), _ = converse(["Hello", "And now?"], chat=chat)

    (one, other), told = converse(["word " * 3000, "Hello", "word " * 3000, "\udce9", "And now?"], chat=chat)

    assert (one, other) == (first, after), "what was not answered is not remembered"
    assert told.count("not answered: a prompt of ") == 2
    assert told.count("What was said before (1 turn) is kept; an empty line forgets it.") == chat
    assert "this line is not UTF-8" in told


@pytest.mark.world
def test_ranks_that_share_the_layers_converse_at_a_terminal_like_one_device(model: Path) -> None:
    alone, together = (talk(model, ["Hello", "And now?", "", "Hello"], *more) for more in ((), ("--tp", "2")))

    assert alone == together
    assert len(together) == 3
    assert together[0] == together[2] != together[1], "an empty line forgets"


def talk(model: Path, lines: list[str], *options: str) -> list[str]:
    """The answers of `megatune generate --chat` to lines that are typed at a terminal, one after another."""
    command = [
        sys.executable,
        "-m",
        "megatune",
        "generate",
        str(model),
        "--chat",
        "--max-new-tokens",
        "5",
        *options,
    ]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    answers = []
    try:
        read_until_asked(ours)
        for line in lines:
            os.write(ours, line.encode() + b"\n")
            shown = read_until_asked(ours).replace(line, "", 1)  # the terminal shows what is typed
            answers += [shown.strip()] if line else []
        os.write(ours, b"\x04")  # Ctrl-D
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        os.close(ours)
    return answers


def read_until_asked(terminal: int, timeout_s: float = 120) -> str:
    """What is shown up to the next question."""
    shown = b""
    while not shown.endswith(b"> "):
        ready, _, _ = select.select([terminal], [], [], timeout_s)
        assert ready, shown
        shown += os.read(terminal, 4096)
    return shown[:-2].decode()


@pytest.mark.world
def test_ranks_that_share_the_layers_write_the_answer_of_one_device(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = GenerateOptions(chat=False, tensor_parallel=1, as_json=True, stream=False)
    generate_answers(model, ["Once upon"], None, Decoding(max_new_tokens=6), asked)

    together = megatune("generate", model, "-p", "Once upon", "--max-new-tokens", 6, "--json", "--tp", 2)

    assert together.code == 0, together.text
    assert json.loads(together.out) == json.loads(capsys.readouterr().out)


def test_a_prompt_that_does_not_fit_is_refused(model: Path) -> None:
    asked = GenerateOptions(chat=False, tensor_parallel=1, as_json=True, stream=False)

    with pytest.raises(UserError, match=r"positions of this model.*--max-new-tokens"):
        generate_answers(model, ["word " * 3000], None, Decoding(max_new_tokens=6), asked)


@pytest.mark.parametrize("prompts", [[""], ["Once upon", "", "x"]])
def test_an_empty_prompt_is_refused_where_no_token_comes_before_a_text(
    model: Path, prompts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = GenerateOptions(chat=False, tensor_parallel=1, as_json=False, stream=True)

    with pytest.raises(UserError, match="an empty prompt gives this model nothing to go on from") as refused:
        generate_answers(model, prompts, None, Decoding(max_new_tokens=6), asked)

    assert str(refused.value).startswith("prompt 2 of 3: ") == (len(prompts) == 3)
    assert capsys.readouterr().out == "", "all prompts are looked at before one is answered"


def test_prompts_that_are_no_utf8_are_refused_with_what_they_may_be(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("ok\ncafé\n".encode("cp1252"))
    command = [sys.executable, "-m", "megatune", "generate", str(model), "--max-new-tokens", "2"]
    for more, given, fix in (
        ([], file.read_bytes(), "iconv -f cp1252 -t utf-8"),
        (["--file", str(file)], b"", "iconv -f cp1252 -t utf-8 prompts.txt > utf8-prompts.txt"),
        (["-p", b"caf\xe9"], b"", "Type it in a terminal whose encoding is UTF-8"),
    ):
        done = subprocess.run([*command, *more], input=given, capture_output=True, check=False)

        told = done.stderr.decode()
        assert done.returncode == 2, told
        assert "Traceback" not in told
        assert "is not UTF-8" in told
        assert "In cp1252 it would read 'café'" in told
        assert fix in told


def test_only_the_first_line_of_the_input_may_begin_with_the_mark_of_an_encoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for given, encoding in (("é\n".encode("utf-16"), "utf-16"), (b"ok\n\xff\xfe\xe9\n", "cp1252")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        with pytest.raises(ConfigError, match=f"iconv -f {encoding} -t utf-8"):
            lines_of_input()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--temperature", 0.5], "--temperature: only drawn answers have them; add --sample"),
        (["--top-k", 5, "--top-p", 0.9], "--top-k, --top-p: only drawn answers"),
        (["--beams", 2, "--stream"], "--beams 2 changes its mind about them; use one of them"),
        (["--beams", 2, "--sample", "--stream"], "has 2 problems"),
    ],
)
def test_options_that_would_have_no_effect_are_refused_with_the_fix(
    model: Path, given: list[object], words: str
) -> None:
    assert_refused(megatune("generate", model, "-p", "x", *given), words)


def test_drawing_takes_its_options_and_beams_print_at_the_end(model: Path) -> None:
    drawn = megatune(
        "generate", model, "-p", "x", "--sample", "--temperature", 2, "--top-k", 50, "--no-stream"
    )
    searched = megatune("generate", model, "-p", "x", "--beams", 2)

    assert (drawn.code, searched.code) == (0, 0), drawn.text + searched.text


def test_a_prompt_of_several_lines_comes_from_a_file_or_from_standard_input(
    model: Path, tmp_path: Path
) -> None:
    text = "Write a line:\n\n  roses\n"
    (tmp_path / "one.txt").write_text(text)
    (tmp_path / "two.txt").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    command = [sys.executable, "-m", "megatune", "generate", str(model), "--max-new-tokens", "2", "--json"]

    files = ["--prompt-file", str(tmp_path / "one.txt"), "-f", str(tmp_path / "two.txt"), "-f", "-"]
    done = subprocess.run([*command, *files], input=text, capture_output=True, text=True, check=True)

    answers = json.loads(done.stdout)["answers"]
    assert [row["prompt"] for row in answers] == [text.removesuffix("\n")] * 3
    assert len({row["answer"] for row in answers}) == 1


def test_prompt_files_that_cannot_be_used_are_told_at_once(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")

    done = megatune("generate", model, "-f", tmp_path / "none.txt", "-f", tmp_path / "empty.txt")

    assert_refused(done, "has 2 problems", "none.txt cannot be read", "empty.txt is empty")


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_model_runs_where_it_is_trusted_and_where_its_run_trusted_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "run")
    folder = Path(shutil.copytree(model, run.export))
    config = json.loads((folder / "config.json").read_text())
    own = {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    (folder / "own.py").write_text(CODE)
    sections = {"model": {"model_name_or_path": "m", "trust_remote_code": True}, "data": {"train": "t.jsonl"}}
    run.run_file.write_text(yaml.safe_dump({**sections, "train": {"output_dir": "out"}}))

    def answer(asked_of: Path, trusted: bool) -> str:
        asked = GenerateOptions(
            chat=False, tensor_parallel=1, as_json=True, stream=False, trust_remote_code=trusted
        )
        generate_answers(asked_of, ["Once upon"], None, Decoding(max_new_tokens=4), asked)
        return str(json.loads(capsys.readouterr().out)["answers"][0]["answer"])

    with pytest.raises(UserError, match=r"own\.py.*--trust-remote-code"):
        answer(folder, False)
    assert answer(folder, True) == answer(run.path, False) == answer(model, False)
