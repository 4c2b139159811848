"""Started by engines_test.py with a Python that has the engine: renders chat templates, and answers, in another program.

Reads a JSON task from standard input, prints a JSON list, an entry per template: a list of texts, one per request. With
"suppress" (token ids) llama.cpp also answers the first request greedily, and the entry is (texts, token ids).
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


if __name__ == "__main__":
    result = {"xllamacpp": llama_cpp, "openvino_genai": openvino}[sys.argv[1]](json.load(sys.stdin))
    print("\n" + json.dumps(result))
