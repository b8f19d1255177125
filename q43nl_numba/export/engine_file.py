"""Reading an engine file: the model that its metadata describes, checked against its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..convert.container import Header
from ..convert.errors import ModelFileError, tensor_error
from ..convert.json_file import LARGEST_INTEGER
from ..convert.reading import read_header
from ..convert.tensors import SourceFile, StoredTensor
from .architectures import TABLE, Architecture, architecture_named
from .dimensions import Dimensions
from .plan import FORMATS, SCORES, TOKENS, Format
from .tensors import EngineTensor
from .tokenizer import Tokenizer, parse_tokens

#: The engine refuses a file without either of these keys.
_MARKS = ("palm", "pasllm")


@dataclass(frozen=True)
class EngineFile:
    """An engine file whose tensors are what its metadata says.

    `tensors` are those that the file holds, each with its place.
    """

    file: SourceFile
    header: Header
    architecture: Architecture
    dims: Dimensions
    format: Format
    tensors: tuple[tuple[EngineTensor, StoredTensor], ...]
    tokens: StoredTensor
    scores: StoredTensor

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer.

        Raises
        ------
        ModelFileError
            If its bytes are not those of as many pieces.
        """
        data = self.tokens.stored_bytes(0, self.tokens.nbytes).tobytes()
        try:
            pieces = parse_tokens(data, self.dims.vocab_size)
        except ValueError as error:
            raise self.tokens.error(str(error)) from error
        return Tokenizer(pieces, self.scores.floats(0, self.dims.vocab_size))


def is_engine_file(header: Header) -> bool:
    """Tell whether a file is one that the engine would open."""
    return any(key in header.metadata for key in _MARKS)


def read_engine_file(path: str) -> EngineFile:
    """Read the description of an engine file, and check every tensor against it.

    Raises
    ------
    OSError
        If the file cannot be read.
    ModelFileError
        If it is no engine file, its architecture or format is not known here, or a tensor is
        missing, has another size than the metadata says, or is not one of the architecture's.
    """
    header = read_header(path)
    if not is_engine_file(header):
        raise ModelFileError(
            f"{path}: an engine file must have the metadata key 'pasllm', found none"
        )
    architecture = _architecture(header)
    dims = metadata_dimensions(header)
    problem = dims.problem()
    if problem:
        raise ModelFileError(f"{path}: {problem}")
    chosen = _format(header)
    file = SourceFile.at(path)
    stored = {entry.name: StoredTensor.of(file, header, entry) for entry in header.entries}
    tensors = tuple(
        (tensor, stored[tensor.name])
        for tensor in architecture.tensors(dims)
        if _is_there(header, stored, tensor, chosen)
    )
    known = {tensor.name for tensor, _ in tensors} | {TOKENS, SCORES}
    for name in stored:
        if name not in known:
            raise tensor_error(path, name, f"is no tensor of {architecture.class_name}")
    return EngineFile(
        file,
        header,
        architecture,
        dims,
        chosen,
        tensors,
        _of_tokenizer(header, stored, TOKENS, "U8"),
        _scores(header, stored, dims),
    )


def metadata_dimensions(header: Header) -> Dimensions:
    """Return the dimensions that the metadata of an engine file says."""
    hidden_dim = _integer(header, "hidden_dim")
    head_dim = _integer(header, "head_dim")
    return Dimensions(
        dim=_integer(header, "dim"),
        hidden_dim=hidden_dim,
        expert_hidden_dim=_integer(header, "expert_hidden_dim", hidden_dim),
        head_dim=head_dim,
        n_layers=_integer(header, "n_layers"),
        n_heads=_integer(header, "n_heads"),
        n_kv_heads=_integer(header, "n_kv_heads"),
        vocab_size=_integer(header, "vocab_size"),
        max_seq_len=_integer(header, "max_seq_len"),
        rotary_dim=_integer(header, "rotary_dim"),
        n_experts=_integer(header, "n_experts", 1),
        n_experts_active=_integer(header, "n_experts_active", 1),
    )


def _architecture(header: Header) -> Architecture:
    arch = header.metadata.get("arch", "")
    found = architecture_named(arch)
    if found is None:
        known = ", ".join(architecture.arch for architecture in TABLE)
        raise ModelFileError(f"{header.path}: arch must be one of {known}, found {arch!r}")
    return found


def _format(header: Header) -> Format:
    word = header.metadata.get("dtype", "")
    for chosen in FORMATS.values():
        if chosen.word == word.upper():
            return chosen
    words = ", ".join(chosen.word for chosen in FORMATS.values())
    raise ModelFileError(f"{header.path}: dtype must be one of {words}, found {word!r}")


def _is_there(
    header: Header, stored: Mapping[str, StoredTensor], tensor: EngineTensor, chosen: Format
) -> bool:
    """Check a tensor's bytes; return False for one that a file may lack and does."""
    found = stored.get(tensor.name)
    if found is None:
        if tensor.optional:
            return False
        raise tensor_error(header.path, tensor.name, "must be in the file, found none")
    dtype = chosen.dtype if tensor.is_matrix else "F32"
    nbytes = chosen.entry("", tensor.shape).nbytes if tensor.is_matrix else tensor.size * 4
    if found.dtype != dtype or found.nbytes != nbytes:
        raise found.error(
            f"must have {nbytes} bytes of {dtype} for shape {list(tensor.shape)}, "
            f"found {found.nbytes} of {found.dtype}"
        )
    return True


def _of_tokenizer(
    header: Header, stored: Mapping[str, StoredTensor], name: str, dtype: str
) -> StoredTensor:
    """Return one of the tokenizer's tensors."""
    if name not in stored or stored[name].dtype != dtype:
        raise tensor_error(header.path, name, f"must be in the file as {dtype}, found none")
    return stored[name]


def _scores(header: Header, stored: Mapping[str, StoredTensor], dims: Dimensions) -> StoredTensor:
    """Return the scores, of which every token has one."""
    scores = _of_tokenizer(header, stored, SCORES, "F32")
    count = math.prod(scores.shape)
    if count != dims.vocab_size:
        raise scores.error(f"must have {dims.vocab_size} values, found {count}")
    return scores


def _integer(header: Header, key: str, default: int | None = None) -> int:
    text = header.metadata.get(key)
    if text is None and default is not None:
        return default
    try:
        value = int(text or "")
    except ValueError:
        value = 0
    if not 1 <= value <= LARGEST_INTEGER:
        found = "none" if text is None else f"{text!r:.80}"
        raise ModelFileError(
            f"{header.path}: metadata key {key!r} must be an integer of at least 1, found {found}"
        )
    return value
