"""What a model's folder holds or asks for that training leaves out: for people, at the start of a run."""

from collections.abc import Iterator

from megatune.model.build import BuiltModel
from megatune.units import counted


def left_out_notes(built: BuiltModel) -> Iterator[str]:
    """One sentence for each thing."""
    text = built.source.config.get_text_config()
    if built.is_text_alone:
        yield (
            f"the folder holds a '{built.source.config.model_type}'; its language model alone is trained and exported, "
            f"as a {type(built.model).__name__}"
        )
    if built.left_out:
        shown = ", ".join(built.left_out[:3])
        yield (
            f"{counted(len(built.left_out), 'weight')} of the model's files have no place in what config.json "
            f"describes, and are neither trained nor exported: {shown}{', ...' if len(built.left_out) > 3 else ''}"
        )
    if getattr(text, "output_router_logits", False):
        yield (
            "config.json asks for the router's own loss (output_router_logits), which balances the experts; megatune "
            "trains the loss of the tokens alone"
        )
    if getattr(built.source.config, "quantization_config", None) is not None:
        yield (
            "the stored weights are quantized (quantization_config); what they stand for is trained, and exported as "
            "plain weights"
        )
