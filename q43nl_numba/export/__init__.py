"""The engine's own file: a Hugging Face folder in, a model that PasLLM runs out, and back.

`export_model` writes the complete file, `inspect_model` shows what is in one, and `restore_model`
makes a folder of it again. One tensor's way: an architecture (`architectures`) says where it comes
from, `checks` finds it in the `folder`, `plan` places it, and it is read, permuted, quantized and
written a piece at a time. `metadata`, `tokenizer` and `chat` make the rest of the file.
"""

from .architectures import CLASS_NAMES
from .engine_file import is_engine_file
from .exporting import DTYPES, export_model
from .inspecting import EngineContents, inspect_model
from .report import ExportReport, ExportWarning, FolderReport
from .restoring import RESTORE_DTYPES, restore_model

__all__ = [
    "CLASS_NAMES",
    "DTYPES",
    "RESTORE_DTYPES",
    "EngineContents",
    "ExportReport",
    "ExportWarning",
    "FolderReport",
    "export_model",
    "inspect_model",
    "is_engine_file",
    "restore_model",
]
