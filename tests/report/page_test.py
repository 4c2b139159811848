"""The page in a browser: the slider switches answers, texts stay texts, and the console has no error."""

import copy
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from meal_jax.report import content, page
from tests.report.content_test import EVIL, SAVED

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Appended to the page: moves the slider to both ends and leaves what it saw in the document.
DRIVE = """<script>
const seen = [], slider = document.getElementById("slider");
for (const value of [slider.min, slider.max]) {
  slider.value = value;
  slider.dispatchEvent(new Event("input"));
  seen.push([...document.querySelectorAll(".response")].map((p) => p.textContent));
}
document.body.dataset.seen = JSON.stringify(seen);
// The front over evaluations: its slider at the end, the beginning and the end again.
const moment = document.getElementById("moment"), play = document.querySelector("#replay button"), frames = [];
document.body.dataset.play = play.hidden;
(async () => {
  for (const value of [moment.max, 0, moment.max]) {
    moment.value = value;
    moment.dispatchEvent(new Event("input"));
    for (let i = 0; i < 9; i++) await null;  // the figure is drawn in a microtask
    frames.push([moment.parentNode.nextSibling.textContent, document.querySelector("canvas").toDataURL()]);
  }
  const same = (i, j) => frames[i][1] === frames[j][1];
  document.body.dataset.frames = JSON.stringify([frames.map((f) => f[0]), same(0, 1), same(0, 2)]);
})();
document.body.dataset.title = document.title;
</script>"""


# At the head of the page: remembers the texts of its figures.
WATCH = """<script>
const texts = [], fill = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) { texts.push(text); fill.call(this, text, ...rest); };
</script>"""
# Appended to the page: the names of the front's axes, and what the second prompt's answers are.
SECOND = """<script>
document.body.dataset.axes = JSON.stringify(texts.filter((text) => /^[a-z]/.test(text)));
document.getElementById("prompt").value = 1;
document.getElementById("prompt").dispatchEvent(new Event("change"));
document.body.dataset.seen = JSON.stringify([...document.querySelectorAll(".response")].map((p) => p.textContent));
</script>"""


def load(text, folder, *flags):
    """The page's DOM as text, once its scripts have run without an error."""
    path = folder / "report.html"
    path.write_text(text)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *flags]
    command = [CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom", path.as_uri()]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert 'data-ready="yes"' in out.stdout, out.stderr[-2000:]
    assert "CONSOLE" not in out.stderr, out.stderr[-2000:]
    return out.stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian's package of that name)")
def test_many_evaluations_long_questions_and_prompts_that_read_the_same(tmp_path):
    result = content.gather(content.find(Path(SAVED)))
    (method,) = result["methods"]
    # More points than a call may have arguments, about 125,000 in Chromium.
    method["evaluations"] = [[step, method["points"]] for step in range(200_000 // len(method["points"]))]
    method["samples"] = [copy.deepcopy(method["samples"][0]) for _ in range(2)]
    for answer in method["samples"][1]["answers"]:
        answer["response"] = "of the second"
    result["axes"] = [f"{name} reward (judge: {'Is it? ' * 20})" for name in result["objectives"]]
    out = load(page.render(result).replace("<main>", WATCH + "<main>").replace("</body>", SECOND + "</body>"), tmp_path)
    seen, axes = (json.loads(html.unescape(re.search(rf'data-{n}="([^"]*)"', out)[1])) for n in ("seen", "axes"))
    assert seen == ["of the second"]
    assert set(axes) == {"first", "second"}  # the caption has the questions


def test_the_script_gives_no_list_of_points_as_arguments():
    """A call has at most some 10⁵ of them: the rest of a long run's page would be missing."""
    script = "".join((page.HERE / name).read_text() for name in ("triangle.js", "page.js"))
    assert not re.search(r"Math\.(min|max)\(\.\.\.|\.push\(\.\.\.|\.apply\(", script)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian's package of that name)")
@pytest.mark.parametrize(("width", "calm"), [(400, False), (1200, True)])
def test_the_slider_switches_the_answers(tmp_path, width, calm):
    result = content.gather(content.find(Path(SAVED)))
    answers = result["methods"][0]["samples"][0]["answers"]
    answers[0]["response"], answers[-1]["response"] = EVIL, "the last"
    flags = [f"--window-size={width},900"] + ["--force-prefers-reduced-motion"] * calm
    out = load(page.render(result).replace("</body>", DRIVE + "</body>"), tmp_path, *flags)
    visited = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', out)[1]))
    assert visited == [[EVIL], ["the last"]]
    labels, same, again = json.loads(html.unescape(re.search(r'data-frames="([^"]*)"', out)[1]))
    assert labels == ["step 3", "step 0", "step 3"] and not same and again
    assert f'data-play="{str(calm).lower()}"' in out  # nothing moves by itself for who asks for that
    assert 'data-title="taken"' not in out and "<canvas" in out
