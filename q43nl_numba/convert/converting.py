"""Convert models: `convert_model`, and `plan_model`, which tells what it would do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .conversion import planned
from .progress import shown_progress
from .results import ConvertPlan, ConvertReport
from .rules import Rule
from .run import OnProgress

Path = str | os.PathLike[str]


def convert_model(
    source: Path,
    target: Path,
    method: str = "gradient",
    *,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    rules: Path | Sequence[Rule] = (),
    keep_dtype: str = "as-is",
    importance: Path | None = None,
    single_file: bool = False,
    max_shard_size: int | str | None = None,
    allow_empty: bool = False,
    no_clobber: bool = False,
    resume: bool = False,
    scheduler: str | None = None,
    progress: OnProgress | None = None,
    **options: Any,
) -> ConvertReport:
    """Quantize a model to Q43NL.

    Every floating tensor (float64, float32, float16, bfloat16) of two and more dimensions whose
    last dimension is a multiple of 32 is packed; the rest is copied. 8-bit floats with scales
    (``weight_scale_inv``, ``weight_scale``) are packed as the products of both. The output is
    ordinary safetensors, in which packed tensors are ``U8`` of shape ``[..., cols / 32 * 19]``.
    It appears under its name only when it is complete.

    Parameters
    ----------
    source : path
        A safetensors file, a folder as Hugging Face lays it out (one file, or several and their
        index; the hub's cache as it is), or a GGUF file.
    target : path
        For a folder a new folder, into which the other files of `source` are copied; for a file a
        file, which is replaced if it exists. A folder's only file of weights, or all of them with
        `single_file`, can also go to a file (a name that ends in ``.safetensors``).
    method : str
        One of ``q43nl_numba.METHODS``.
    include, exclude : str or sequence of str
        Name patterns (``*``, ``?``, ``[...]``); a string is one pattern. With `include` only
        tensors that match one of its patterns are packed, and never those that match one of
        `exclude`.
    rules : path or sequence of Rule
        A rule file (see `rules`), or its rules: the first one that matches a tensor decides
        whether and how it is packed.
    keep_dtype : {"as-is", "float32", "float16", "bfloat16"}
        What floating tensors that are not packed are cast to.
    importance : path, optional
        A safetensors file of weights of the squared errors, under the names of the tensors: of
        their shape, or a number for each input column, or ``[experts, cols]`` for a tensor
        ``[experts, rows, cols]``; or a file of llama.cpp's ``llama-imatrix``. Other tensors count
        all weights the same.
    single_file : bool
        Write one file, however many the input has.
    max_shard_size : int or str, optional
        Write files of at most so many bytes of data: a number, or a string such as "5GB". By
        default the output has the files that the input has.
    allow_empty : bool
        Do not fail where no tensor is packed. The output is not marked as Q43NL then.
    no_clobber : bool
        Refuse to replace an existing file.
    resume : bool
        Go on with an interrupted run that wrote the same folder, if there is one; the bytes are
        those of an uninterrupted run. It must have had the same input, arguments and version.
    scheduler : str, optional
        Address of a Dask scheduler, whose workers do the work. They must see the same files under
        the same paths. The bytes are the same as without.
    progress : callable, optional
        Called with a `Progress` (bytes read, bytes to read, name of the tensor) after each piece.
    **options
        Keyword arguments of `q43nl`: the method's parameters, ``eps_scale``, ``num_threads``.

    Returns
    -------
    ConvertReport
        What was packed, with its quality, what was kept and why, and the totals.

    Raises
    ------
    OSError
        If a file cannot be read or written.
    ModelFileError
        If `source` is not a sound model or is quantized already (in Q43NL or another format), a
        tensor holds values that cannot be quantized, a pattern matches nothing, no tensor is
        packed, `importance` does not fit the model, `target` cannot be written, or the interrupted
        run was another one.
    ValueError, TypeError
        If an argument is out of range or belongs to another method.
    ModuleNotFoundError
        If a package of the ``convert`` extra is missing.

    See Also
    --------
    plan_model : What it would do.
    verify_model : The same figures, from the files alone.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from safetensors.numpy import load_file, save_file
    >>> from q43nl_numba.convert import convert_model
    >>> folder = tempfile.TemporaryDirectory()
    >>> small, packed = (os.path.join(folder.name, name) for name in ("a.st", "b.st"))
    >>> save_file({"w": np.ones((4, 64), np.float32), "b": np.ones(4, np.float32)}, small)
    >>> report = convert_model(small, packed, "grid")
    >>> [(tensor.name, tensor.shape, tensor.bits_per_weight) for tensor in report.packed]
    [('w', (4, 64), 4.75)]
    >>> {name: (str(a.dtype), a.shape) for name, a in sorted(load_file(packed).items())}
    {'b': ('float32', (4,)), 'w': ('uint8', (4, 38))}
    >>> folder.cleanup()
    """
    if scheduler is not None:  # workers have another current folder
        source, target = os.path.abspath(source), os.path.abspath(target)
        importance = None if importance is None else os.path.abspath(importance)
        rules = os.path.abspath(rules) if isinstance(rules, (str, os.PathLike)) else rules
    return planned(
        source, target, method, options, include=include, exclude=exclude, rules=rules,
        keep_dtype=keep_dtype, importance=importance, single_file=single_file,
        max_shard_size=max_shard_size, allow_empty=allow_empty, no_clobber=no_clobber,
    ).run(no_clobber=no_clobber, resume=resume, scheduler=scheduler, progress=progress)  # fmt: skip


def convert(
    source: Path,
    destination: Path,
    method: str = "gradient",
    *,
    progress: bool = False,
    **arguments: Any,
) -> ConvertReport:
    """Quantize a model to Q43NL: `convert_model` with a progress bar.

    Parameters
    ----------
    source, destination, method
        As in `convert_model`.
    progress : bool
        Show a bar on stderr if that is a terminal, else a line now and then.
    **arguments
        Keyword arguments of `convert_model`.

    Returns
    -------
    ConvertReport
        What was packed, with its quality, what was kept and why, and the totals.

    Raises
    ------
    OSError, ModelFileError, ValueError, TypeError, ModuleNotFoundError
        As `convert_model` does.
    """
    with shown_progress(shown=progress) as callback:
        return convert_model(source, destination, method, progress=callback, **arguments)


def plan_model(
    source: Path,
    target: Path,
    method: str = "gradient",
    *,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    rules: Path | Sequence[Rule] = (),
    keep_dtype: str = "as-is",
    importance: Path | None = None,
    single_file: bool = False,
    max_shard_size: int | str | None = None,
    allow_empty: bool = False,
    no_clobber: bool = False,
    **options: Any,
) -> ConvertPlan:
    """Tell what `convert_model` would do with the same arguments, and write nothing.

    Returns
    -------
    ConvertPlan
        What becomes of each tensor, and the exact sizes of the files.

    Raises
    ------
    OSError, ModelFileError, ValueError, TypeError, ModuleNotFoundError
        As `convert_model` does before it reads a tensor.
    """
    return planned(
        source, target, method, options, include=include, exclude=exclude, rules=rules,
        keep_dtype=keep_dtype, importance=importance, single_file=single_file,
        max_shard_size=max_shard_size, allow_empty=allow_empty, no_clobber=no_clobber,
    ).plan()  # fmt: skip
