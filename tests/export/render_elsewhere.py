"""Started by engines_test.py with a Python that has the engine: renders chat templates, and answers, in another program.

Reads a JSON task from standard input and prints a JSON list. Of a task with templates it has an entry per template: a list of
texts, one per request. With "suppress" (token ids) llama.cpp also answers the first request greedily, and the entry is (texts,
token ids). Of a task with a directory and ids it is the greedy answer's token ids.
"""

import json
import sys
import tempfile
import urllib.request


def llama_cpp(task):
    import xllamacpp

    def post(server, path, body):
        request = urllib.request.Request(
            server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())

    out = []
    for template in task["templates"]:
        params = xllamacpp.CommonParams()
        params.model.path = task["gguf"]
        params.chat_template, params.use_jinja = template, True
        params.n_ctx, params.n_parallel, params.warmup, params.fit_params, params.verbosity = 256, 1, False, False, 0
        params.cpuparams.n_threads = 1
        server = xllamacpp.Server(params)
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
        if "suppress" not in task:
            out.append(texts)
            continue
        read = {"content": texts[0], "add_special": False, "parse_special": True}
        asked = {
            "prompt": post(server, "/tokenize", read)["tokens"],
            "n_predict": 10,
            "temperature": 0,
            "return_tokens": True,
            "logit_bias": [[i, False] for i in task["suppress"]],
        }
        out.append((texts, post(server, "/completion", asked)["tokens"]))
    return out


def openvino(task):
    import openvino
    import openvino_genai
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as directory:
        parts = convert_tokenizer(AutoTokenizer.from_pretrained(task["tokenizer"]), with_detokenizer=True)
        for name, part in zip(("tokenizer", "detokenizer"), parts, strict=True):
            openvino.save_model(part, f"{directory}/openvino_{name}.xml")
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


def ctranslate2(task):
    """A greedy answer of the exported directory to token ids; the converter needs torch too."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as directory:
        TransformersConverter(task["directory"]).convert(directory, force=True)
        prompt = AutoTokenizer.from_pretrained(task["directory"]).convert_ids_to_tokens(task["ids"])
        generator = ctranslate2.Generator(directory, intra_threads=1)
        (answer,) = generator.generate_batch([prompt], max_length=10, beam_size=1, include_prompt_in_result=False)
        return answer.sequences_ids[0]


def mlx_lm(task):
    """A greedy answer of the exported directory to token ids."""
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    def suppress(_, logits):
        logits[:, mx.array(task["suppress"])] = -mx.inf
        return logits

    model, _ = load(task["directory"])
    steps = generate_step(mx.array(task["ids"]), model, max_tokens=10, logits_processors=[suppress])
    return [int(token) for token, _ in steps]


ENGINES = {"xllamacpp": llama_cpp, "openvino_genai": openvino, "ctranslate2": ctranslate2, "mlx_lm": mlx_lm}
if __name__ == "__main__":
    result = ENGINES[sys.argv[1]](json.load(sys.stdin))
    print("\n" + json.dumps(result))
