"""The architectures that the engine's file can hold, one module each."""

from __future__ import annotations

from ...convert.json_file import JsonFile
from .architecture import Architecture
from .gemma import Gemma
from .llama import Llama
from .mistral import Mistral
from .mixtral import Mixtral
from .phi3 import Phi3
from .qwen2 import Qwen2
from .qwen3 import Qwen3
from .qwen3moe import Qwen3Moe
from .smollm3 import SmolLM3

TABLE: tuple[Architecture, ...] = (
    Llama(),
    Mistral(),
    Qwen2(),
    Qwen3(),
    Qwen3Moe(),
    Mixtral(),
    Phi3(),
    Gemma(),
    SmolLM3(),
)

#: The classes of transformers models that can be exported.
CLASS_NAMES: tuple[str, ...] = tuple(architecture.class_name for architecture in TABLE)

__all__ = ["CLASS_NAMES", "TABLE", "Architecture", "architecture_named", "architecture_of"]


def architecture_of(config: JsonFile) -> Architecture:
    """Return the architecture of a folder's configuration.

    Raises
    ------
    ModelFileError
        If there is none; the message lists those there are.
    """
    classes = config.get("architectures")
    first = classes[0] if isinstance(classes, list) and classes else None
    for architecture in TABLE:
        if architecture.class_name == first:
            return architecture
    raise config.error("architectures", f"a list of one of {', '.join(CLASS_NAMES)}")


def architecture_named(arch: str) -> Architecture | None:
    """Return the architecture by the engine's word for it, None where there is none."""
    return next((architecture for architecture in TABLE if architecture.arch == arch), None)
