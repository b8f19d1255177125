"""Make the tiny models of this folder and the logits that transformers computes for them.

Run once, where PyTorch and transformers are installed: ``python make.py``. The tests need neither.
Every folder holds a random model; ``expected.safetensors`` holds its logits for the ids of
``ids``, under the names of the variants of its configuration that ``variants.json`` lists.
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).parent
LENGTH = 40
STRIDE = 4  # logits are kept of every fourth position
VOCABULARY = 288

COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "initializer_range": 0.3,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip

MODELS = {
    "llama": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_theta": 10000.0,
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
    },
    "llama-biased": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_theta": 500000.0,
        "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 16,
    },
    "mistral": {
        "model_type": "mistral", "architectures": ["MistralForCausalLM"], "rope_theta": 10000.0,
        "sliding_window": 12, "head_dim": 16, "tie_word_embeddings": False,
    },
    "qwen2": {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "rope_theta": 1000000.0,
        "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 8,
        "max_window_layers": 1,
    },
    "qwen3": {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "rope_theta": 1000000.0,
        "tie_word_embeddings": False, "head_dim": 16, "attention_bias": False,
        "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2,
    },
    "smollm3": {
        "model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"], "rope_theta": 50000.0,
        "tie_word_embeddings": True, "no_rope_layers": [1, 0], "pad_token_id": 1,
    },
    "phi3": {
        "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "rope_theta": 10000.0,
        "tie_word_embeddings": False, "sliding_window": None, "pad_token_id": 1,
        "original_max_position_embeddings": 128,
    },
    "gemma": {
        "model_type": "gemma", "architectures": ["GemmaForCausalLM"], "rope_theta": 10000.0,
        "head_dim": 16, "hidden_act": "gelu_pytorch_tanh", "pad_token_id": 1,
        "tie_word_embeddings": True, "initializer_range": 0.1,
    },
    "mixtral": {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "rope_theta": 10000.0,
        "tie_word_embeddings": False, "num_local_experts": 3, "num_experts_per_tok": 2,
        "intermediate_size": 32, "sliding_window": None,
    },
    "qwen3moe": {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "head_dim": 16,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True,
        "mlp_only_layers": [], "decoder_sparse_step": 1, "sliding_window": None,
    },
}  # fmt: skip

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip

LONGROPE = {
    "type": "longrope",
    "long_factor": [1.0, 1.5, 2.0, 4.0], "short_factor": [1.0, 1.1, 1.2, 1.3],
}  # fmt: skip

VARIANTS = {
    "llama": {
        "plain": {},
        "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        "old spelling": {"rope_scaling": {"type": "linear", "factor": 4.0}},
        "dynamic": {
            "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
            "max_position_embeddings": 16,
        },
        "dynamic within the context": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        "llama3": {"rope_scaling": LLAMA3},
        "yarn": {
            "rope_scaling": {
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
            }
        },
    },
    "llama-biased": {"plain": {}},
    "mistral": {"plain": {}, "without a window": {"sliding_window": None}},
    "qwen2": {"plain": {}, "sliding": {"use_sliding_window": True}},
    "qwen3": {"plain": {}},
    "smollm3": {"plain": {}, "all rotated": {"no_rope_layers": [1, 1]}},
    "phi3": {
        "plain": {},
        "sliding": {"sliding_window": 9},
        "partial": {"partial_rotary_factor": 0.5},
        "longrope, long": {"rope_scaling": LONGROPE, "original_max_position_embeddings": 16},
        "longrope, short": {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64},
    },
    "gemma": {"plain": {}},
    "mixtral": {"plain": {}},
    "qwen3moe": {"plain": {}, "shares as they are": {"norm_topk_prob": False}},
}  # fmt: skip


def make_tokenizer() -> None:
    """A byte-level tokenizer that begins every text with token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([Path(__file__).read_text()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(HERE / "tokenizer.json"))


def make_model(name: str, seed: int) -> None:
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    config = COMMON | MODELS[name] | {"torch_dtype": "bfloat16"}
    write_json(folder / "config.json", config)
    write_json(folder / "variants.json", VARIANTS[name])
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as made:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        for parameter in model.parameters():  # norms and biases are constant otherwise
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, parameter.mean().item(), 0.2)
        model.to(torch.bfloat16).save_pretrained(made)
        shutil.copy(Path(made) / "model.safetensors", folder)
    ids = torch.randint(2, VOCABULARY, (1, LENGTH))
    ids[0, 0] = 0
    expected = {"ids": ids.int()}
    for label, changes in VARIANTS[name].items():
        expected[label] = logits_of(folder, config | changes, ids)
    save_file(expected, folder / "expected.safetensors")


def logits_of(folder: Path, config: dict, ids: torch.Tensor) -> torch.Tensor:
    with tempfile.TemporaryDirectory() as variant:
        shutil.copy(folder / "model.safetensors", variant)
        write_json(Path(variant) / "config.json", config)
        model = AutoModelForCausalLM.from_pretrained(
            variant, dtype=torch.float32, attn_implementation="eager"
        )
    with torch.no_grad():
        return model.eval()(ids).logits[0, STRIDE - 1 :: STRIDE].contiguous()


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    make_tokenizer()
    for number, model_name in enumerate(MODELS):
        make_model(model_name, number)
