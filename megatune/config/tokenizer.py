"""The `tokenizer` section: a tokenizer that is not simply the model's."""

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from megatune.config.fields import Count, Flag, Section, Text

Coverage = Annotated[float, Strict(), Field(gt=0, le=1, allow_inf_nan=False)]


class TokenizerSection(Section):
    """A tokenizer to train on the rows, or tokens to add to the model's own. The run folder then holds the model's
    configuration with it, in model/."""

    train: Literal["sentencepiece"] | None = Field(
        default=None,
        description="Train one on data.train; the model must begin from random weights (model.initialize).",
        examples=["sentencepiece"],
    )
    vocab_size: Count = Field(
        default=8000, description="Tokens of the trained tokenizer, special ones included."
    )
    model_type: Literal["unigram", "bpe"] = Field(
        default="unigram", description="Kind of SentencePiece model."
    )
    character_coverage: Coverage = Field(
        default=0.9995, description="Share of the characters of the text that get a token of their own."
    )
    byte_fallback: Flag = Field(
        default=True, description="Write the other characters as bytes; false: as unknown."
    )
    add_tokens: list[Text] = Field(
        default_factory=list,
        description="Words that become one token each; the embedding grows by rows of its mean.",
        examples=[["<sql>"]],
    )
    add_special_tokens: list[Text] = Field(
        default_factory=list,
        description="The same, for tokens that are markup and no text.",
        examples=[["<|user|>"]],
    )

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if len(set(self.added)) < len(self.added):
            raise ValueError("a section in which each added token stands once")
        return self

    @property
    def added(self) -> list[str]:
        """All tokens to add."""
        return [*self.add_tokens, *self.add_special_tokens]

    @property
    def is_asked_for(self) -> bool:
        """Whether the section changes anything."""
        return self.train is not None or bool(self.added)
