"""Small language models of transformers, from their configurations: nothing is downloaded."""

from __future__ import annotations

from torch import nn

from secateur.errors import ModelError
from secateur.factories import need
from secateur.models.options import check_counts


def llama(
    vocabulary: int = 256,
    context: int = 128,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    ffn: int = 384,
) -> nn.Module:
    """A small Llama of transformers for next tokens: rotary positions, RMS norms and gated FFNs.

    ``width`` is a multiple of ``heads``, and each head's share of it even; ``ffn``: a layer's gated neurons.
    """
    _check(width, heads, vocabulary=vocabulary, context=context, layers=layers, ffn=ffn)
    if width // heads % 2:
        raise ModelError(f"heads is {heads}; rotary positions need an even share of width {width} for each")
    kinds = need("transformers", extra="transformers")
    config = kinds.LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=context,
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=False,
        use_cache=False,
    )
    return kinds.LlamaForCausalLM(config)


def mixtral(
    vocabulary: int = 256,
    context: int = 128,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    ffn: int = 192,
    experts: int = 8,
    chosen: int = 2,
) -> nn.Module:
    """A small Mixtral of transformers for next tokens: a Llama whose FFNs are mixtures of ``experts``, of
    which ``chosen`` run for each token.

    ``ffn``: the gated neurons of each expert.
    """
    _check(
        width, heads, vocabulary=vocabulary, context=context, layers=layers, ffn=ffn, experts=experts,
        chosen=chosen,
    )  # fmt: skip
    if width // heads % 2:
        raise ModelError(f"heads is {heads}; rotary positions need an even share of width {width} for each")
    if chosen > experts:
        raise ModelError(f"chosen is {chosen}; of {experts} experts at most so many run for a token")
    kinds = need("transformers", extra="transformers")
    config = kinds.MixtralConfig(
        vocab_size=vocabulary,
        max_position_embeddings=context,
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        num_local_experts=experts,
        num_experts_per_tok=chosen,
        sliding_window=None,
        tie_word_embeddings=False,
        use_cache=False,
        experts_implementation="eager",
    )
    return kinds.MixtralForCausalLM(config)


def gpt2(
    vocabulary: int = 256,
    context: int = 128,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    ffn: int = 512,
) -> nn.Module:
    """A small GPT-2 of transformers for next tokens: learned positions, layer norms, plain FFNs.

    ``width`` is a multiple of ``heads``; the embedding is the classifier too; ``ffn``: a layer's neurons.
    """
    _check(width, heads, vocabulary=vocabulary, context=context, layers=layers, ffn=ffn)
    kinds = need("transformers", extra="transformers")
    config = kinds.GPT2Config(
        vocab_size=vocabulary,
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_inner=ffn,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return kinds.GPT2LMHeadModel(config)


def _check(width: int, heads: int, **counts: int) -> None:
    check_counts(width=width, heads=heads, **counts)
    if width % heads:
        raise ModelError(f"heads is {heads}; width {width} is a multiple of it, so that each has as much")
