"""The bundled model: a small Mixture-of-Experts that ships with the package, and the tools that made it.

``bundled_model_dir`` is all that the product needs.  ``train`` and ``evaluate`` are run as modules by whoever wants to
make the model again or to measure it; nothing here imports torch until one of them is.
"""

from pathlib import Path

__all__ = ["bundled_model_dir"]

_MODEL_NAME = "edge-12m"


def bundled_model_dir() -> Path:
    """Return the directory of the model that ships with the package.

    Returns:
        A Hugging Face checkpoint directory: configuration, tokenizer and one ``model.safetensors``.

    Raises:
        FileNotFoundError: The package was installed without its model.
    """
    directory = Path(__file__).resolve().parent / _MODEL_NAME
    if not (directory / "model.safetensors").is_file():
        raise FileNotFoundError(f"the bundled model is missing from {directory}")
    return directory
