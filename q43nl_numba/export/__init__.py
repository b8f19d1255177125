"""The engine's own file: a Hugging Face folder in, a model that PasLLM runs out, and back.

`export_model` writes the complete file, `inspect_model` shows what is in one, and `restore_model`
makes a folder of it again. One tensor's way: an architecture (`architectures`) says where it comes
from, `checks` finds it in the `folder`, `plan` places it, and it is read, permuted, quantized and
written a piece at a time. `metadata`, `tokenizer` and `chat` make the rest of the file.
"""

from q43nl_numba.export.architectures import CLASS_NAMES
from q43nl_numba.export.engine_file import is_engine_file
from q43nl_numba.export.exporting import DTYPES, export_model
from q43nl_numba.export.inspecting import EngineContents, inspect_model
from q43nl_numba.export.report import ExportReport, ExportWarning, FolderReport
from q43nl_numba.export.restoring import RESTORE_DTYPES, restore_model

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
