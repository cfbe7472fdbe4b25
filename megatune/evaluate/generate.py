"""Text from a plain Hugging Face folder, on one device."""

from pathlib import Path

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
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    except (ValueError, OSError) as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from error
    if chat and not tokenizer.chat_template:
        raise ModelError(f"{folder} has no chat template; leave --chat out.")
    return [_answer(model, tokenizer, prompt, chat, max_new_tokens) for prompt in prompts]


def _answer(model: torch.nn.Module, tokenizer: object, prompt: str, chat: bool, max_new_tokens: int) -> str:
    text, special = prompt, True
    if chat:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)  # type: ignore[attr-defined]
        special = False  # the template has written the special tokens
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=special)  # type: ignore[operator]
    ids = inputs["input_ids"].to(model.device)
    with torch.no_grad():
        output = model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.eos_token_id,  # type: ignore[attr-defined]
        )
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()  # type: ignore[attr-defined]
