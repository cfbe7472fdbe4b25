"""What is fetched of a hub id, and which key a message names."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from megatune.errors import ModelError
from megatune.model.source import resolve_model


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Patterns of each download; the hub's answer is an empty folder."""
    asked: list[list[str]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:  # noqa: ARG001
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_without_weights_all_but_the_safetensors_files_are_fetched(fetched: list[list[str]]) -> None:
    resolve_model("owner/name")
    resolve_model("owner/name", weights=False)

    whole, light = fetched
    assert set(whole) - set(light) == {"*.safetensors"}
    assert {"*.json", "*.model", "*.txt", "*.jinja", "*.py"} <= set(light), "what tokenizers consist of"


@pytest.mark.parametrize(
    ("given", "key"), [({}, "model.model_name_or_path"), ({"key": "model.tokenizer"}, "model.tokenizer")]
)
@pytest.mark.parametrize("name", ["/no/such/folder", "owner/no-such-model"])
def test_a_message_names_the_key_that_is_wrong(given: dict[str, Any], key: str, name: str) -> None:
    with pytest.raises(ModelError, match=rf"^{key}: .*{name}"):
        resolve_model(name, **given)
