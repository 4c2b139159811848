"""The prefix network in NumPy: from weights to the embeddings that tell the policy of them.

    net = load()                        # prefix.safetensors beside this file
    embeddings = slots(net, w)          # [P, D], to stand between the conversation and the generation prompt

README.md shows how to generate from them. Needs numpy and safetensors, nothing else.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def load(path=None):
    """Name to array, from the file beside this one or another."""
    return load_file(path or Path(__file__).with_name("prefix.safetensors"))


def slots(net, w):
    """Embeddings [P, D] for weights w [K] that sum to 1."""
    w = np.asarray(w, np.float32)
    x = (2 * len(w) * w - 2) @ net["hidden/kernel"] + net["hidden/bias"]
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi).astype(np.float32) * (x + 0.044715 * x**3)))
    x = (x @ net["slots/kernel"] + net["slots/bias"]) * net["scale"]
    return x.reshape(-1, int(net["width"]))
