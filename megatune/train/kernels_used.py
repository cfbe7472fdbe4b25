"""Which implementations a run really computes with: asked of the model and the engine, not of the settings."""

from megatune.engine.base import TrainingEngine
from megatune.model.compiled import runs_compiled


def kernels_used(engine: TrainingEngine) -> dict[str, str]:
    """Attention, loss and norms of a built engine; its optimizer stands in `engine.description`."""
    model = engine.built.model
    norms = sorted(
        {type(module).__name__ for module in model.modules() if "norm" in type(module).__name__.lower()}
    )
    return {
        "blocks": "compiled" if runs_compiled(model) else "as transformers has them",
        "attention": str(model.config._attn_implementation),
        "loss": "in chunks inside the head" if engine.chunked_loss else "from whole logits",
        "norm": ", ".join(norms) or "none",
    }
