"""The engine's own file: a Hugging Face folder in, a model that PasLLM runs out, and back.

``export_model`` writes the complete file. One tensor's way: an architecture (`architectures`) says
where it comes from, `checks` finds it in the `folder`, `plan` places it, and it is read, permuted,
quantized and written a piece at a time. `metadata`, `tokenizer` and `chat` make the rest of the
file.
"""

from q43nl_numba.export.architectures import CLASS_NAMES
from q43nl_numba.export.exporting import DTYPES, export_model
from q43nl_numba.export.report import ExportReport, ExportWarning

__all__ = ["CLASS_NAMES", "DTYPES", "ExportReport", "ExportWarning", "export_model"]
