"""A small Llama with heads and neurons cut alike in every block, as a folder that transformers opens alone.

Needs transformers. The weights are random: what is shown is that the folder opens and says the same.
"""

import sys
from pathlib import Path

try:
    import transformers
except ImportError:
    sys.exit("this example needs transformers: pip install transformers")
import torch

import secateur as sc

torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=344,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=128,
)
model = transformers.LlamaForCausalLM(config).eval()
ids = {"input_ids": torch.randint(512, (2, 24))}

# Half of the key-value groups and of the neurons: the same number in each block, its own lowest.
structure = sc.trace(model, ids)
sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=structure, alike=True)
small, proof = sc.compact(model, ids, structure=structure)
print(proof)

folder = Path("small-llama")
if folder.exists():
    sys.exit(f"{folder} is there already; remove it first")
print(sc.save_pretrained(small, folder))  # opened again in a process that has no secateur

again = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
with torch.no_grad():
    off = (again(**ids).logits - small(**ids).logits).abs().max()
print(f"dense {model.num_parameters():,} parameters, small {again.num_parameters():,}; off by {off:.1e}")
