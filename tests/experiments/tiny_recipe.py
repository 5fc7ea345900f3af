"""A recipe of four trials that run in seconds."""

TINY = """\
name: tiny
description: "three points on digits"
source: "a test"
data: {name: digits, validation: 200}
model: {name: digits-mlp, hidden: 16}
train: {epochs: 2, lr: 2.0e-3, batch_size: 64}
steps:
  - prune: {criterion: magnitude, budget: {name: global, sparsity: 0.5},
            schedule: {name: cubic, steps: 2, retrain: {epochs: 1}}}
  - retrain: {epochs: 2}
sweep: {prune.budget.sparsity: [0.5, 0.8]}
seeds: [0, 1]
reference: [{prune.budget.sparsity: 0.5, accuracy_retrained: 0.9}]
"""
