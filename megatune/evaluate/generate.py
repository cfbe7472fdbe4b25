"""Text from a plain Hugging Face folder, on one device."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatune.errors import ModelError


def answer_prompts(folder: Path, prompts: list[str], *, chat: bool, max_new_tokens: int) -> list[str]:
    """The greedy continuation of each prompt, without the prompt. `chat`: through the chat template.

    Raises ModelError when the folder holds no model and tokenizer that transformers can load.
    """
    if not folder.is_dir():
        raise ModelError(f"there is no model folder {folder}.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except (ValueError, OSError) as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from error
    if chat and not tokenizer.chat_template:
        raise ModelError(f"{folder} has no chat template; leave --chat out.")
    model.to(device).eval()
    return [_answer(model, tokenizer, prompt, chat, max_new_tokens) for prompt in prompts]


def _answer(model: Any, tokenizer: Any, prompt: str, chat: bool, max_new_tokens: int) -> str:
    text, special = prompt, True
    if chat:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        special = False  # the template has written the special tokens
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=special)
    ids = inputs["input_ids"].to(model.device)
    with torch.no_grad():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.eos_token_id,
        )
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()
