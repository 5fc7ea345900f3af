"""LoRA on a pruned network: adapters learn what is new, and merging them fills the zeros unless masks say no.

pip install 'secateur[trainers,transformers]'
A small GPT-2 learns the letters of Python's argparse, is halved, and then adapted to its dataclasses.
"""

import argparse
import dataclasses
import inspect

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, logging

import secateur as sc

LENGTH = 32


def letters(module) -> torch.Tensor:
    codes = torch.tensor([min(ord(c), 127) for c in inspect.getsource(module)])
    return codes[: len(codes) // LENGTH * LENGTH].view(-1, LENGTH)


def train(model, lines: torch.Tensor, steps: int, lr: float, masks: sc.Masks | None = None) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    with (masks or sc.Masks(model, {})).held(optimizer):
        for step in range(steps):
            batch = lines[torch.arange(step * 16, step * 16 + 16) % len(lines)]
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def say(what: str, model, lines: torch.Tensor) -> None:
    with torch.no_grad():
        loss = model.eval()(input_ids=lines, labels=lines).loss
    model.train()
    print(f"{what:<48} {sc.sparsity(model):6.1%} zeros   loss {loss:.3f}")


if __name__ == "__main__":
    logging.set_verbosity_error()
    torch.manual_seed(0)
    sizes = {"n_positions": LENGTH, "n_embd": 48, "n_layer": 2, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=128, bos_token_id=0, eos_token_id=0, **sizes))
    old, (held_out, new) = letters(argparse), letters(dataclasses).tensor_split([60])
    train(model, old, 200, 4e-3)
    say("dense, before it saw the new text", model, held_out)
    masks = sc.prune(model, sc.Wanda(), sc.Uniform(0.5), data=[{"input_ids": old[:64]}])
    say("pruned by half", model, held_out)
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True))
    train(adapted, new, 150, 1e-2)  # the base is frozen: its zeros stay
    say("adapters trained beside the zeros", adapted, held_out)
    merged = adapted.merge_and_unload().requires_grad_(True)
    say("merged: adapters have filled the zeros", merged, held_out)
    masks = masks.bind(merged).apply()
    say("merged, the zeros put back", merged, held_out)
    train(merged, new, 50, 1e-3, masks)
    say("and 50 steps more with the zeros held", merged, held_out)
