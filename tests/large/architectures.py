"""Small networks of transformers, each of another architecture, for tests of folders."""

import torch
import transformers

_SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
_HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 64}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SAME = _SIZES | _HEADS | _SPECIAL
_SHORT = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64} | _SPECIAL
_BLOOM = {"vocab_size": 96, "hidden_size": 32, "n_layer": 3, "n_head": 4} | _SPECIAL
_PLAIN = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4} | _SPECIAL
_T5 = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4}

CONFIGS = {
    "Llama": _SAME | {"head_dim": 8},
    "Mistral": _SAME | {"head_dim": 8},
    "Qwen2": _SAME,
    "Qwen3": _SAME | {"head_dim": 8},
    "Gemma2": _SAME | {"head_dim": 8},
    "Gemma3": _SAME | {"head_dim": 8},
    "Phi3": _SAME,
    "GPT2": _SHORT,
    "OPT": _PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "Bloom": _BLOOM,
    "Falcon": _PLAIN,
    "T5": _T5 | {"decoder_start_token_id": 0},
    "Mixtral": _SAME | {"head_dim": 8, "num_local_experts": 4},
    "Qwen3Moe": _SAME
    | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}
_CLASSES = {"GPT2": "GPT2LMHeadModel", "T5": "T5ForConditionalGeneration"}
_NAMES = {"Gemma3": "Gemma3TextConfig"}


def network(name, seed=0, **changes):
    """Return a random network of an architecture, of which every block does something."""
    torch.manual_seed(seed)
    config = getattr(transformers, _NAMES.get(name, f"{name}Config"))(**CONFIGS[name] | changes)
    model = getattr(transformers, _CLASSES.get(name, f"{name}ForCausalLM"))(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


def tokens(number=8, length=16, seed=0):
    return torch.randint(3, 96, (number, length), generator=torch.Generator().manual_seed(seed))
