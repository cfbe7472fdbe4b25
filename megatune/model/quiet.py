"""Keep libraries from writing progress bars and start-up chatter between our lines."""

import logging
import warnings

import transformers


def quiet_libraries() -> None:
    """Call it once per process, before a model is loaded."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch has renamed; nothing a user can do.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
