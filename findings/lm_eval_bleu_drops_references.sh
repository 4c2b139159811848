#!/usr/bin/env bash
# lm-eval 0.4.13: bleu, chrf and ter use no more references of any prompt than the prompt with the fewest has, and drop the rest.
#
# sacrebleu wants the first references of all prompts, then the second, and so on. lm-eval turns the lists round with zip, which
# stops at the shortest. One prompt with a single reference takes the second and later ones from all others, and then the score
# depends on which reference stands first. sacrebleu itself takes None for a missing reference. Nothing is raised or warned, and
# a subset of a task (--limit) may be scored with more references than the whole. Give every prompt as many references, by
# repeating its last one.
#
# Output seen (Python 3.11, sacrebleu 2.6.0, NumPy 2.4.6); two answers, each among its references, two of the first, one of the
# second; in this order / the first's turned round / the second's repeated / sacrebleu with None:
#   bleu: 16.2 / 100.0 / 100.0 / 100.0
#   chrf: 33.9 / 100.0 / 100.0 / 100.0
#   ter: 100.0 / 0.0 / 0.0 / 0.0
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check sacrebleu==2.6.0 "numpy<2.5"
# lm-eval's own requirements, data set libraries among them, are not needed here
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps lm-eval==0.4.13
cat > "$folder/show.py" <<'PYTHON'
import itertools
import warnings

import sacrebleu
from lm_eval.api import metrics

warnings.simplefilter("error")
answers = ["the cat sat on the mat in the sun", "a dog ran"]
first, second = ["a cat was lying there", "the cat sat on the mat in the sun"], ["a dog ran"]
streams = [list(stream) for stream in itertools.zip_longest(first, second)]
direct = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf, "ter": sacrebleu.corpus_ter}
seen = {}
for name, measure in direct.items():
    found = [
        getattr(metrics, name)(list(zip(references, answers)))
        for references in ((first, second), (first[::-1], second), (first, second * 2))
    ]
    seen[name] = [*found, measure(answers, streams).score]
    print(f"{name}: {' / '.join(f'{score:.1f}' for score in seen[name])}")
for name, best in (("bleu", 100), ("chrf", 100), ("ter", 0)):
    assert abs(seen[name][0] - best) > 50, "it behaves otherwise now"
    assert all(abs(score - best) < 1e-6 for score in seen[name][1:]), "the others behave otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
