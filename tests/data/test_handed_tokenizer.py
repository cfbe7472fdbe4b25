"""What a worker is handed in the place of a tokenizer makes ids without the classes of transformers."""

import json
import pickle
import subprocess
import sys

from megatune.data.handed_tokenizer import handed

MAKE_IDS = """
import json, pickle, sys
from megatune.data.tokenize import Limit, tokenize
from megatune.tasks import Segment
tokenizer = pickle.load(sys.stdin.buffer)
found = tokenize([[Segment("The capital", False), Segment(" is Paris", True)]], tokenizer, Limit(max_length=99))
print(json.dumps([found.input_ids.tolist(), "transformers" in sys.modules]))
"""


def test_ids_of_text_need_no_more_than_the_library(llama_like):
    given = pickle.dumps(handed(llama_like))
    done = subprocess.run([sys.executable, "-c", MAKE_IDS], input=given, capture_output=True, check=True)
    ids, has_imported = json.loads(done.stdout)
    assert ids == [*llama_like("The capital is Paris").input_ids, llama_like.eos_token_id]
    assert not has_imported


def test_whatever_else_is_asked_the_whole_tokenizer_answers(gpt2_like):
    found = pickle.loads(pickle.dumps(handed(gpt2_like)))
    messages = [{"role": "user", "content": "2 + 2"}]
    assert found("is a", return_offsets_mapping=True) == gpt2_like("is a", return_offsets_mapping=True)
    assert found.apply_chat_template(messages) == gpt2_like.apply_chat_template(messages)
    assert found.name_or_path == gpt2_like.name_or_path


def test_a_slow_tokenizer_is_handed_as_it_is(slow):
    assert handed(slow) is slow
