"""llama2.c's files: its own forward pass and its own tokenizer, written here from its format, against what is converted."""

import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from meal_jax.hf import convert_llama2c, llama2c, pretrained
from meal_jax.models.policy import Conditioning, Policy

SIZES = dict(width=16, hidden=20, layers=2, heads=4, kv_heads=2, vocabulary=270, context=12)
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "stories260k"
REAL_MODEL, REAL_PIECES = REAL / "stories260K.bin", REAL / "tok512.bin"
need_real = pytest.mark.skipif(not REAL.is_dir(), reason="llama2.c's files are not at ../shared/data/stories260k")
PIECES = (" a", "ab", " ab", "b ", " ", "a", "b", "c", "é", ".", "\n")


def write_model(path, tied=True, seed=0):
    """A random checkpoint; its parameters in the file's order."""
    s, rng = SIZES, np.random.default_rng(seed)
    c = s["width"] // s["heads"]
    g, v, d, n, f = s["kv_heads"] * c, s["vocabulary"], s["width"], s["layers"], s["hidden"]
    shapes = [(v, d), (n, d), (n, d, d), (n, g, d), (n, g, d), (n, d, d), (n, d), (n, f, d), (n, d, f), (n, f, d), (d,)]
    shapes += [(s["context"], c // 2)] * 2 + ([] if tied else [(v, d)])
    arrays = [rng.normal(0, 0.3, shape).astype("<f4") for shape in shapes]
    header = struct.pack("<7i", *(s | {"vocabulary": v if tied else -v}).values())
    path.write_bytes(header + b"".join(a.tobytes() for a in arrays))
    return arrays


def write_pieces(path):
    """A tokenizer of 270 tokens: three special ones, the bytes, PIECES. Scores fall as ids rise, as llama2.c exports them."""
    texts = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{i:02X}>" for i in range(256)), *PIECES]
    scores = [0.0] * 259 + [-float(i) for i in range(len(PIECES))]
    rows = [struct.pack("<fi", s, len(t.encode())) + t.encode() for s, t in zip(scores, texts, strict=True)]
    path.write_bytes(struct.pack("<i", 8) + b"".join(rows))


def naive_logits(arrays, tokens, tied):
    """llama2.c's forward pass, token by token: neighbouring channels rotate, keys and values are cached."""
    s = SIZES
    embedding, norm1, wq, wk, wv, wo, norm2, w1, w2, w3, final, _, _, *output = (np.float64(a) for a in arrays)
    c, groups = s["width"] // s["heads"], s["heads"] // s["kv_heads"]

    def rms(x, w):
        return w * x / np.sqrt(np.mean(x * x) + 1e-5)

    cache = [([], []) for _ in range(s["layers"])]
    out = []
    for index, token in enumerate(tokens):
        x = embedding[token]
        for layer, (keys, values) in enumerate(cache):
            h = rms(x, norm1[layer])
            q, k, v = ((w[layer] @ h).reshape(-1, c) for w in (wq, wk, wv))
            for heads in (q, k):
                for i in range(0, c, 2):
                    angle = index * 10_000.0 ** (-i / c)
                    a, b = heads[:, i].copy(), heads[:, i + 1].copy()
                    heads[:, i] = a * np.cos(angle) - b * np.sin(angle)
                    heads[:, i + 1] = a * np.sin(angle) + b * np.cos(angle)
            keys.append(k)
            values.append(v)
            mixed = []
            for head in range(s["heads"]):
                scores = np.array([key[head // groups] @ q[head] for key in keys]) / np.sqrt(c)
                weights = np.exp(scores - scores.max())
                mixed.append(np.tensordot(weights / weights.sum(), [v[head // groups] for v in values], 1))
            x = x + wo[layer] @ np.concatenate(mixed)
            h = rms(x, norm2[layer])
            gate = w1[layer] @ h
            x = x + w2[layer] @ (gate / (1 + np.exp(-gate)) * (w3[layer] @ h))
        out.append((embedding if tied else output[0]) @ rms(x, final))
    return np.array(out)


def naive_ids(path, text):
    """llama2.c's encoder: <s>, a space before the text, characters, then again and again the neighbours of the best score."""
    data, index, vocabulary = path.read_bytes(), 4, {}
    while index < len(data):
        score, length = struct.unpack_from("<fi", data, index)
        piece = data[index + 8 : index + 8 + length].decode()
        vocabulary.setdefault(piece, (len(vocabulary), score))
        index += 8 + length
    scores = {i: (piece, score) for piece, (i, score) in vocabulary.items()}
    ids = []
    for character in " " + text:
        known = vocabulary.get(character)
        ids += [known[0]] if known else [byte + 3 for byte in character.encode()]
    while True:
        best = (-1e10, None, None)
        for i in range(len(ids) - 1):
            result = vocabulary.get(scores[ids[i]][0] + scores[ids[i + 1]][0])
            if result and result[1] > best[0]:
                best = (result[1], i, result[0])
        if best[1] is None:
            return [1, *ids]
        ids[best[1] : best[1] + 2] = [best[2]]


@pytest.mark.parametrize("tied", [True, False])
def test_a_converted_model_computes_what_llama2c_computes(tmp_path, tied):
    arrays = write_model(tmp_path / "model.bin", tied)
    write_pieces(tmp_path / "pieces.bin")
    convert_llama2c.convert(tmp_path / "model.bin", tmp_path / "pieces.bin", tmp_path / "out")
    config = pretrained.load_config(tmp_path / "out")
    assert config.tied == tied
    policy, params = (
        Policy(config, Conditioning("none")),
        {"transformer": pretrained.load_params(tmp_path / "out", config)},
    )
    tokens = np.random.default_rng(1).integers(0, SIZES["vocabulary"], 9)

    @jax.jit
    def logits(tokens):
        first = tokens[None]
        prompt = policy.apply({"params": params}, first[:, :1], jnp.ones((1, 1), bool), method="prefill")
        hidden = policy.apply({"params": params}, prompt, jnp.zeros((1, 1, 2)), first[:, None, 1:], method="respond")
        return policy.apply({"params": params}, hidden, method="unembed")[0, 0]

    np.testing.assert_allclose(logits(tokens), naive_logits(arrays, tokens, tied)[:-1], rtol=1e-3, atol=1e-4)


def test_a_converted_tokenizer_gives_llama2cs_ids(tmp_path):
    write_pieces(tmp_path / "pieces.bin")
    write_model(tmp_path / "model.bin")
    convert_llama2c.convert(tmp_path / "model.bin", tmp_path / "pieces.bin", tmp_path / "out")
    tokenizer = pretrained.load_tokenizer(tmp_path / "out")
    for text in ("ab", "aab b ab", "b  a", "é☃ab", "ab.\nab c", "cab ab ab"):
        ids = tokenizer(text)["input_ids"]
        assert ids == naive_ids(tmp_path / "pieces.bin", text), text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 1, 270)


def test_float16_is_stored_and_rounded_once(tmp_path):
    write_model(tmp_path / "model.bin")
    write_pieces(tmp_path / "pieces.bin")
    for dtype in convert_llama2c.DTYPES:
        convert_llama2c.main(
            [f"--model={tmp_path}/model.bin", f"--tokenizer={tmp_path}/pieces.bin", f"--out={tmp_path / dtype}",
             f"--dtype={dtype}"]
        )  # fmt: skip
    half, whole = (load_file(tmp_path / dtype / "model.safetensors") for dtype in convert_llama2c.DTYPES)
    assert half.keys() == whole.keys()
    for name, array in whole.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(half[name], array.astype(np.float16))


def test_damaged_files_and_strangers_are_refused(tmp_path):
    model, pieces = tmp_path / "model.bin", tmp_path / "pieces.bin"
    write_model(model)
    write_pieces(pieces)
    whole = model.read_bytes()
    model.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=rf"has {len(whole) - 4} bytes, and a model of its header.*has {len(whole)}"):
        llama2c.read_model(model)
    model.write_bytes(bytes(40))
    with pytest.raises(ValueError, match=r"not a llama2\.c checkpoint of format v0"):
        llama2c.read_model(model)
    model.write_bytes(whole)
    rows = pieces.read_bytes()
    pieces.write_bytes(rows[:-1])
    with pytest.raises(ValueError, match="cut short"):
        llama2c.read_tokenizer(pieces)
    pieces.write_bytes(rows + struct.pack("<fi", -99.0, 1) + b"z")
    with pytest.raises(SystemExit, match="271 tokens and .* a vocabulary of 270: they do not belong together"):
        convert_llama2c.main([f"--model={model}", f"--tokenizer={pieces}", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@need_real
def test_the_shipped_model_is_the_published_one(tmp_path):
    convert_llama2c.convert(REAL_MODEL, REAL_PIECES, tmp_path, "float16")
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (pretrained.SHIPPED / "stories260k" / file.name).read_bytes(), file.name


@need_real
def test_the_shipped_tokenizer_gives_llama2cs_ids_on_stories():
    tokenizer = pretrained.load_tokenizer("stories260k")
    text = 'Once upon a time, there was a girl named Lily. "Let\'s play!" said Tim.\nThey were happy – “so” happy… $5 & 100%.'
    for part in (text, text[5:40], text.upper(), "Zoë’s ☃ café\t"):
        ids = tokenizer(part)["input_ids"]
        assert ids == naive_ids(REAL_PIECES, part)
        assert tokenizer.decode(ids, skip_special_tokens=True) == part
