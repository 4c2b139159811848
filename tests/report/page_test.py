"""The page in a browser: the slider switches answers, texts stay texts, and the console has no error."""

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


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian's package of that name)")
@pytest.mark.parametrize(("width", "calm"), [(400, False), (1200, True)])
def test_the_slider_switches_the_answers(tmp_path, width, calm):
    result = content.gather(content.find(Path(SAVED)))
    answers = result["methods"][0]["samples"][0]["answers"]
    answers[0]["response"], answers[-1]["response"] = EVIL, "the last"
    path = tmp_path / "report.html"
    path.write_text(page.render(result).replace("</body>", DRIVE + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},900"]
    flags += ["--force-prefers-reduced-motion"] * calm
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert 'data-ready="yes"' in out.stdout, out.stderr[-2000:]
    assert "CONSOLE" not in out.stderr, out.stderr[-2000:]
    visited = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', out.stdout)[1]))
    assert visited == [[EVIL], ["the last"]]
    labels, same, again = json.loads(html.unescape(re.search(r'data-frames="([^"]*)"', out.stdout)[1]))
    assert labels == ["step 3", "step 0", "step 3"] and not same and again
    assert f'data-play="{str(calm).lower()}"' in out.stdout  # nothing moves by itself for who asks for that
    assert 'data-title="taken"' not in out.stdout and "<canvas" in out.stdout
