"""The peer: one step of rejection-sampling alignment as it is written with transformers, PEFT and torch.

    rollout   model.generate with its KV cache, temperature 1, N sequences a prompt
    score     one pass of the base model (adapters off), linear heads on its mean hidden state over the response
    update    teacher-forced passes over [prompt, response], log-probabilities of the response tokens alone
              (logits_to_keep), − Σ a log π / |y|, clipped gradient, AdamW on the LoRA factors; one update for each half of
              the prompts

What is usual where RiC and TRL are used, with nothing slow left in on purpose: attention is torch's fused one, logits are made
for response positions only, and log-probabilities without a second [rows, T, V] array. `python -m meal_jax.bench --vs=hf`
starts this file and alternates it with its own step. Alone:

    python benchmarks/peer_hf.py --source=weights/SmolLM2-135M-Instruct --steps=3

As a server (--serve) it reads a JSON object a line from stdin and answers with one a line on stdout; see `main`.

Letters: B prompts, N candidates, K objectives, S prompt tokens, T response tokens, V vocabulary, D width.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, CompileConfig, StoppingCriteria, StoppingCriteriaList


@dataclasses.dataclass
class Job:
    """What is measured; the names are those of the configuration.

    Attributes:
      source: Hugging Face directory or hub id of the weights; "" draws them at random by `shapes`.
      shapes: config.json's entries, used where source is "".
      batch, candidates, prompt, new: B, N, S, T.
      objectives: K.
      updates: of a step; each on its part of the prompts.
      rank, alpha, targets: of LoRA; names as in "attention/q".
      dtype: of computing: float32 or bfloat16.
      param_dtype: of the frozen weights.
      lr, clip: of the update.
      checkpointing: recompute activations in the backward pass.
      merged: fold the adapters into the weights for the rollout and take them out again after it.
      cache: of generate: dynamic, transformers' own choice; static, allocated whole at the start; compiled, static with the
        pass of a token compiled by torch (inductor, which needs a C++ compiler on a CPU).
      threads: of torch on the CPU; 0 leaves torch's choice.
      device: cpu or cuda.
      inputs: .npz with prompts [B, S], heads [K, D], and optionally the factors "attention/q/lora_a" [L, D, R]; "" draws them.
    """

    source: str = ""
    shapes: dict = dataclasses.field(default_factory=dict)
    batch: int = 4
    candidates: int = 8
    prompt: int = 64
    new: int = 64
    objectives: int = 2
    updates: int = 2
    rank: int = 16
    alpha: float = 32.0
    targets: tuple = ("attention/q", "attention/k", "attention/v", "attention/o")
    dtype: str = "float32"
    param_dtype: str = "float32"
    lr: float = 5e-4
    clip: float = 1.0
    checkpointing: bool = False
    merged: bool = False
    cache: str = "dynamic"
    threads: int = 0
    device: str = "cpu"
    inputs: str = ""


END = 2  # the end and pad token


class Limits(StoppingCriteria):
    """Ends each row after its own number of new tokens [rows], as a per-row stop does."""

    def __init__(self, prompt: int, limits: torch.Tensor):
        self.prompt, self.limits = prompt, limits

    def __call__(self, input_ids, scores, **kwargs) -> torch.Tensor:
        return input_ids.shape[1] - self.prompt >= self.limits


MODULES = {"attention": "self_attn", "mlp": "mlp"}


class Peer:
    """The model, its adapters and its optimizer, and the three phases."""

    def __init__(self, job: Job):
        self.job = job
        torch.manual_seed(0)
        if job.threads:
            torch.set_num_threads(job.threads)
        dtype = getattr(torch, job.param_dtype)
        if job.source:
            model = AutoModelForCausalLM.from_pretrained(job.source, dtype=dtype)
        else:
            entries = dict(job.shapes)
            entries.pop("architectures", None)
            with torch.device(job.device):
                model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**entries), dtype=dtype)
        names = [target.split("/") for target in job.targets]
        pattern = "|".join(rf"{MODULES[part]}\.{name}_proj" for part, name in names)
        lora = LoraConfig(
            r=job.rank,
            lora_alpha=job.alpha,
            lora_dropout=0.0,
            target_modules=rf".*\.({pattern})",
            task_type="CAUSAL_LM",
        )
        self.model = get_peft_model(model, lora).to(job.device)
        if job.checkpointing:
            self.model.enable_input_require_grads()
        inputs = dict(np.load(job.inputs)) if job.inputs else {}
        config = model.config
        rng = np.random.default_rng(1)
        prompts = inputs.get("prompts")
        if prompts is None:
            prompts = rng.integers(3, config.vocab_size, (job.batch, job.prompt))
        heads = inputs.get("heads")
        heads = rng.normal(size=(job.objectives, config.hidden_size)) if heads is None else heads
        self.prompts = torch.as_tensor(prompts, dtype=torch.long, device=job.device)
        self.heads = torch.as_tensor(heads, dtype=torch.float32, device=job.device)
        self.set_adapters(inputs)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=job.lr, weight_decay=0.0)

    def set_adapters(self, factors) -> None:
        """Copies factors "attention/q/lora_a" [L, D, R] and "…/lora_b" [L, R, F] over the adapters."""
        modules = dict(self.model.named_modules())
        for path, stacked in factors.items():
            part, _, rest = path.partition("/")
            if part not in MODULES:
                continue
            name, factor = rest.split("/")
            for layer, tensors in enumerate(stacked):
                linear = modules[f"base_model.model.model.layers.{layer}.{MODULES[part]}.{name}_proj"]
                adapter = linear.lora_A if factor == "lora_a" else linear.lora_B
                adapter["default"].weight.data.copy_(torch.as_tensor(tensors.T))

    def autocast(self):
        """Frozen weights stored wider than the compute type are cast, as mixed-precision training does."""
        mixed = self.job.dtype != self.job.param_dtype or self.job.dtype == "bfloat16"
        return torch.autocast(self.job.device, dtype=torch.bfloat16, enabled=mixed and self.job.dtype == "bfloat16")

    @torch.no_grad()
    def rollout(self, limits: list[list[int]] | None = None) -> torch.Tensor:
        """[B · N, S + T] token ids; the end token is kept from being drawn, so every response has T tokens.

        With limits [B, N] each response has that many, and pad tokens until the longest ends.
        """
        length = {"min_new_tokens": self.job.new}
        if limits is not None:
            rows = torch.as_tensor(limits, device=self.job.device).flatten()
            stop = StoppingCriteriaList([Limits(self.prompts.shape[1], rows)])
            length = {"suppress_tokens": [END], "eos_token_id": END, "stopping_criteria": stop}
        if self.job.cache != "dynamic":
            length |= {"cache_implementation": "static", "disable_compile": self.job.cache == "static"}
        if self.job.cache == "compiled":
            length["compile_config"] = CompileConfig(mode="default")  # the default captures CUDA graphs
            length["compile_config"]._compile_all_devices = True  # on a CPU too
        self.model.eval()
        if self.job.merged:
            self.model.merge_adapter()
        with self.autocast():
            out = self.model.generate(
                input_ids=self.prompts,
                attention_mask=torch.ones_like(self.prompts),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=self.job.candidates,
                max_new_tokens=self.job.new,
                pad_token_id=END,
                use_cache=True,
                **length,
            )
        if self.job.merged:
            self.model.unmerge_adapter()
        return out

    @torch.no_grad()
    def score(self, sequences: torch.Tensor) -> torch.Tensor:
        """Rewards [B · N, K]: the base's mean last hidden state over the response, times the heads."""
        self.model.eval()
        with self.model.disable_adapter(), self.autocast():
            body = self.model.get_base_model().model
            hidden = body(input_ids=sequences, attention_mask=torch.ones_like(sequences), use_cache=False)[0]
        return hidden[:, -self.job.new :].float().mean(dim=1) @ self.heads.T

    def loss(self, sequences: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """− Σ a_n mean_t log π(y_nt) / Σ a over rows [rows, S + T] with acceptance weights a [rows]."""
        t = self.job.new
        with self.autocast():
            logits = self.model(
                input_ids=sequences,
                attention_mask=torch.ones_like(sequences),
                logits_to_keep=t + 1,
                use_cache=False,
            ).logits[:, :-1]
        logp = -torch.nn.functional.cross_entropy(
            logits.float().reshape(-1, logits.shape[-1]), sequences[:, -t:].reshape(-1), reduction="none"
        )
        return -(a * logp.reshape(-1, t).mean(dim=1)).sum() / a.sum()

    def update(self, sequences: torch.Tensor, a: torch.Tensor) -> dict[str, list[float]]:
        """One AdamW update for each part of the prompts: every `updates`-th, with all its candidates."""
        self.model.train()
        if self.job.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        grouped = sequences.reshape(self.job.batch, self.job.candidates, -1)
        weights = a.reshape(self.job.batch, self.job.candidates)
        losses, norms = [], []
        for part in range(self.job.updates):
            rows = grouped[part :: self.job.updates].flatten(0, 1)
            loss = self.loss(rows, weights[part :: self.job.updates].flatten())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(self.trained, self.job.clip))
            self.optimizer.step()
            losses.append(loss.detach())
        if self.job.checkpointing:
            self.model.gradient_checkpointing_disable()
        return {"loss": [float(x) for x in losses], "grad_norm": [float(x) for x in norms]}

    def step(self) -> dict[str, float]:
        """A whole step; seconds of each phase, and how many tokens it sampled."""
        marks = [self._clock()]
        sequences = self.rollout()
        marks.append(self._clock())
        rewards = self.score(sequences)
        # One preference for each candidate, spread evenly; a softmax over the pool under each (K = 2 and more alike).
        grouped = rewards.reshape(self.job.batch, self.job.candidates, -1)
        grouped = (grouped - grouped.mean((0, 1))) / (grouped.std((0, 1)) + 1e-8)
        w = torch.rand(self.job.candidates, grouped.shape[-1], device=rewards.device)
        a = torch.softmax(torch.einsum("nk,bjk->bnj", w / w.sum(-1, keepdim=True), grouped) / 0.3, dim=-1)
        a = torch.diagonal(a, dim1=1, dim2=2).reshape(-1)
        marks.append(self._clock())
        self.update(sequences, a)
        marks.append(self._clock())
        seconds = dict(zip(("rollout", "score", "update"), np.diff(marks).tolist(), strict=True))
        return seconds | {"step": marks[-1] - marks[0], "tokens": int(sequences[:, self.job.prompt :].numel())}

    def uneven(self, limits: list[list[int]]) -> dict[str, float]:
        """A rollout of responses of given lengths [B, N]: its seconds, and how many tokens it sampled."""
        began = self._clock()
        sequences = self.rollout(limits)
        seconds = self._clock() - began
        return {"seconds": seconds, "tokens": int((sequences[:, self.prompts.shape[1] :] != END).sum())}

    def check(self, path: str) -> dict[str, list[float]]:
        """`update` on given responses, with equal acceptance: losses and gradient norms.

        Args:
          path: .npz with tokens [B, N, T] and the adapters' factors to begin from.
        """
        given = dict(np.load(path))
        self.set_adapters(given)
        tokens = torch.as_tensor(given["tokens"], dtype=torch.long, device=self.job.device)
        prompts = self.prompts[:, None].expand(-1, self.job.candidates, -1)
        sequences = torch.cat([prompts, tokens], dim=-1).flatten(0, 1)
        return self.update(sequences, torch.ones(len(sequences), device=self.job.device))

    def _clock(self) -> float:
        if self.job.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def serve() -> None:
    """Answers requests: {"do": "open", …fields of Job}, {"do": "check", "path": …}, {"do": "step"}, {"do": "uneven",
    "limits": …}; ends with the input.

    An error is answered as {"error": message} and ends the server.
    """
    out, sys.stdout = sys.stdout, sys.stderr  # libraries may print; the answers' channel is ours
    peer = None
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        try:
            if do == "open":
                peer = Peer(Job(**request))
                answer = {"torch": torch.__version__, "threads": torch.get_num_threads()}
            else:
                answer = {"check": peer.check, "step": peer.step, "uneven": peer.uneven}[do](**request)
        except Exception as error:  # the other side must not wait for an answer that will not come
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=out, flush=True)
            raise
        print(json.dumps(answer), file=out, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--steps", type=int, default=3, help="of which the first warms up")
    for field in dataclasses.fields(Job):
        if isinstance(field.default, bool):
            parser.add_argument(f"--{field.name}", action="store_true")
        elif isinstance(field.default, int | float | str):
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    args = vars(parser.parse_args())
    serving, steps = args.pop("serve"), args.pop("steps")
    if serving:
        serve()
        return
    peer = Peer(Job(**args))
    for number in range(steps):
        print(f"step {number}:", {name: round(value, 3) for name, value in peer.step().items()}, flush=True)


if __name__ == "__main__":
    main()
