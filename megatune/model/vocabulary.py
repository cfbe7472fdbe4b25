"""Give a model embeddings for more tokens."""

import torch
from torch import nn
from transformers import PreTrainedModel


@torch.no_grad()
def grow_vocabulary(model: PreTrainedModel, vocab_size: int, *, num_known: int) -> None:
    """Give `model` at least `vocab_size` embedding rows; those of tokens from `num_known` on become the mean.

    The mean of the known rows, in the embedding, the output head and its bias: a new token is then as
    likely as an average one, and the loss on text without it hardly changes (Hewitt 2021, "Initializing
    New Word Embeddings for Pretrained Language Models"). Before the model is cut or partitioned.
    """
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding), "causal language models of transformers have one"
    if vocab_size > embedding.num_embeddings:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    found = {id(weight): weight for weight in _rows(model)}  # a tied head is the embedding
    for weight in found.values():
        grown = weight.detach().clone()  # the stored weights may be mapped, and stay as they are
        grown[num_known:] = weight[:num_known].mean(dim=0, dtype=torch.float32)
        weight.data = grown


def _rows(model: PreTrainedModel) -> list[torch.Tensor]:
    """All parameters with one row for each token."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding), "checked by the caller"
    head = model.get_output_embeddings()  # a classifier's has no row for a token, or there is none
    is_over_tokens = isinstance(head, nn.Linear) and head.out_features == embedding.num_embeddings
    layers = (embedding, head) if is_over_tokens else (embedding,)
    named = [getattr(layer, name, None) for layer in layers for name in ("weight", "bias")]
    return [parameter for parameter in named if isinstance(parameter, nn.Parameter)]
