"""Recipes as text: to read, to run in seconds, with every kind of step, and the head of one of any steps."""

RECIPE = """\
name: mine
data: {name: digits, validation: 200}
model: {name: digits-mlp}
train: {epochs: 2, lr: 1.0e-3, batch_size: 64}
steps:
  - prune: {criterion: magnitude, budget: {name: global, sparsity: 0.9}}
  - retrain: {epochs: 3}
sweep: {prune.budget.sparsity: [0.5, 0.9], prune.criterion: [magnitude, random]}
seeds: [0, 1]
"""

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
reference: [{prune.budget.sparsity: 0.5, score_retrained: 0.9}]
"""

HEAD = """
name: steps
data: {name: digits, validation: 200}
model: {name: digits-mlp, hidden: 16}
train: {epochs: 2, lr: 2.0e-3}
measure: []
seeds: [0]
steps:
"""

KINDS = """\
name: kinds
data: {name: digits, validation: 200}
model: {name: digits-mlp}
train: {epochs: 2, lr: 1.0e-3, batch_size: 64, momentum: 0.5, clip: 1.0, patience: 2, flip: false}
methods:
  gradual:
    steps:
      - prune:
          criterion: {name: random, seed: 3}
          budget: {name: global, sparsity: 0.9, min_kept: 1}
          calibration: 100
          block: [2, 2]
          schedule: {name: cubic, steps: 3, initial: 0.1, retrain: {epochs: 1}}
      - share: {values: 16, train: {epochs: 1}}
  trimmed:
    steps:
      - prune: {budget: {name: std, sensitivity: 0.5}, shrinkage: {name: smooth, a: 2.0}}
  units:
    steps:
      - prune:
          units: true
          criterion: {name: l2_norm, normalise: true}
          budget: {name: uniform, sparsity: 0.5}
          round_to: 2
      - refit: {calibration: 100, ridge: 0.1}
      - compact:
  to:
    steps:
      - prune_to: {macs: 0.5, min_kept: 2}
  greedy:
    steps:
      - greedy: {parameters: 0.5, every: 16, at_once: 2, examples: 100}
  selection:
    steps:
      - structure_selection: {penalty: 0.1, lr: 0.2, momentum: 0.8, threshold: 0.01, blocks: false}
  anneal:
    steps:
      - anneal: {ratio: 0.25, update: 0.5, adaptive: true, rates: [1.0], schedule: {step: 0.25}}
  scratch:
    steps:
      - scratch: {model: {hidden: 32}}
seeds: [0]
threads: 1
"""
