"""The preference-weight-net in NumPy: from a user's weights to those that the policy should be given for a prompt.

    net = load()                        # weight_net.safetensors beside this file
    proposed = propose(net, pooled, w)

`pooled` is the mean, over the tokens of the prompt without the generation prompt, of the model's last hidden states after the
final norm; README.md says how to get it. Needs numpy and safetensors, nothing else.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def load(path=None):
    """Name to array, from the file beside this one or another."""
    return load_file(path or Path(__file__).with_name("weight_net.safetensors"))


def propose(net, pooled, w):
    """Proposed weights [..., K] for pooled features [..., D] and target weights w [..., K]; each row sums to 1."""
    h, w = np.asarray(pooled, np.float32), np.asarray(w, np.float32)
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
    if "moments/mean" in net:  # features in standard deviations over the prompts of training
        h = np.clip((h - net["moments/mean"]) / np.sqrt(net["moments/var"] + 1e-8), -5, 5)
    x = _dense(net, "prompt", h) + _dense(net, "target", w.shape[-1] * w - 1)
    x = _dense(net, "mixed", _gelu(x))
    x = np.log(w + net["epsilon"]) + _dense(net, "shift", _gelu(x))
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def _dense(net, layer, x):
    return x @ net[f"{layer}/kernel"] + net[f"{layer}/bias"]


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi).astype(np.float32) * (x + 0.044715 * x**3)))
