"""Calibration and evaluation without PyTorch: a forward pass in NumPy over model folders.

`calibrate` runs text through a model and writes statistics of every matrix' inputs, which
``convert`` weighs errors with; `evaluate` says what a quantized model lost;
`calibrated_layers` gives a quantizer statistics of the stream that is quantized already. All
need the packages of the ``calibrate`` extra.

The way through this package: ``config`` reads what the model is and ``sources`` its weights,
``text`` cuts windows of tokens, ``forward`` runs them through a layer; ``collect``, ``sequential``
and ``evaluate`` do the three jobs above with it, ``command`` declares them for the command line.
``packing`` quantizes matrices with statistics; ``converting`` and ``exporting`` write its bytes as
a folder, and as the engine's file.

Examples
--------
A model of random weights, with a tokenizer that knows three words:

>>> import json, os, tempfile
>>> import numpy as np
>>> from safetensors.numpy import save_file
>>> from tokenizers import Tokenizer, models, pre_tokenizers
>>> from q43nl_numba.calibrate import calibrate, evaluate
>>> from q43nl_numba.calibrate.config import expected_shapes, parse_config
>>> from q43nl_numba.convert import convert_model
>>> made = tempfile.TemporaryDirectory()
>>> folder, stats, quantized = (os.path.join(made.name, name) for name in ("a", "stats", "b"))
>>> os.mkdir(folder)
>>> raw = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 32,
...        "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 3}
>>> with open(os.path.join(folder, "config.json"), "w") as file:
...     json.dump(raw, file)
>>> words = Tokenizer(models.WordLevel({"the": 0, "old": 1, "house": 2}, unk_token="the"))
>>> words.pre_tokenizer = pre_tokenizers.Whitespace()
>>> words.save(os.path.join(folder, "tokenizer.json"))
>>> rng = np.random.default_rng(0)
>>> save_file({name: rng.normal(0, 0.2, shape).astype(np.float32)
...            for name, shape in expected_shapes(parse_config(raw)).items()},
...           os.path.join(folder, "model.safetensors"))
>>> with open(os.path.join(made.name, "text.txt"), "w") as file:
...     _ = file.write("the old house " * 100)

Its matrices' inputs, a conversion that weighs errors with them, and what it lost:

>>> text = [os.path.join(made.name, "text.txt")]
>>> calibrate(folder, stats, text, tokens=256, window=64).matrices
15
>>> _ = convert_model(folder, quantized, "optimal", importance=stats)
>>> report = evaluate(folder, quantized, text, tokens=256, window=64)
>>> report.tokens, report.divergence_mean.value < 0.1
(252, True)
>>> made.cleanup()
"""

from .architectures import ARCHITECTURES
from .collect import CalibrationReport, calibrate
from .config import ModelConfig, read_config
from .converting import convert_calibrated, convert_with_hessians
from .errors import CalibrationError
from .evaluate import EvaluationReport, Figure, LayerError, evaluate
from .exporting import export_calibrated, export_with_hessians
from .sequential import Matrix, calibrated_layers
from .statistics import Statistics
from .text import Text, Windows, built_in_text, cut_windows, read_text

__all__ = [
    "ARCHITECTURES",
    "CalibrationError",
    "CalibrationReport",
    "EvaluationReport",
    "Figure",
    "LayerError",
    "Matrix",
    "ModelConfig",
    "Statistics",
    "Text",
    "Windows",
    "built_in_text",
    "calibrate",
    "calibrated_layers",
    "convert_calibrated",
    "convert_with_hessians",
    "cut_windows",
    "evaluate",
    "export_calibrated",
    "export_with_hessians",
    "read_config",
    "read_text",
]
