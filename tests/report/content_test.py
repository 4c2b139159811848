"""What a report reads from a stored run, and the page around it: no tag from a text, the same bytes every time, no network."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from meal_jax.pareto import front
from meal_jax.report import content, page, write

SAVED = Path(__file__).parents[1] / "saved" / "toy"
EVIL = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)> @@SCRIPT@@ @@DATA@@"


@pytest.fixture
def stored(tmp_path):
    """A stored run, one of whose answers is hostile."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in ("config.json", "metrics.jsonl", "pareto.json"):
        shutil.copy(SAVED / name, workdir)
    shutil.copytree(SAVED / "evals", workdir / "evals")
    results = json.loads((workdir / "pareto.json").read_text())
    results["samples"][0]["answers"][0]["response"] = EVIL
    (workdir / "pareto.json").write_text(json.dumps(results))
    return workdir


def block(text):
    return re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1]


def test_the_page_holds_the_runs_numbers_and_texts(stored):
    text = write.write(stored).read_text()
    result, results = json.loads(block(text)), json.loads((stored / "pareto.json").read_text())
    method = result["methods"][0]
    assert result["objectives"] == results["objectives"] and method["label"] == "Meal"
    assert method["points"] == [[float(f"{v:.5g}") for v in point] for point in results["points"]]
    assert method["samples"][0]["answers"][0]["response"] == EVIL
    assert method["samples"][0]["answers"][1]["rewards"] == list(
        results["samples"][0]["answers"][1]["rewards"].values()
    )
    rows = [json.loads(line) for line in (stored / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "utility" in row]
    assert method["curves"]["step"] == [row["step"] for row in rows]
    assert method["curves"]["loss/base"] == pytest.approx([row["loss/base"] for row in rows], rel=1e-4)
    assert method["history"] == [[h["step"], float(f"{h['hypervolume']:.5g}")] for h in results["history"]]
    assert method["budget"] == results["budget"]
    assert [step for step, _ in method["evaluations"]] == [0, 3]
    assert method["evaluations"][1][1] == method["points"] != method["evaluations"][0][1]
    differing = {name: value for name, value, _, differs in result["config"] if differs}
    assert differing["steps"] == "3" and "meal.tau" not in differing


def test_answers_of_the_toy_are_explained_and_their_sums_are_the_rewards(stored):
    result = json.loads(block(write.write(stored).read_text()))
    assert "serve none" in result["rule"]
    answers = [answer for sample in result["methods"][0]["samples"] for answer in sample["answers"]]
    assert answers[0]["explained"] is None and len(answers) > 5  # the hostile one is no answer of the toy
    for answer in answers[1:]:
        sums = [float(value) for value in re.findall(r"= (\d\.\d\d)", answer["explained"])]
        assert sums == pytest.approx(answer["rewards"], abs=5.1e-3)


def test_no_text_of_a_run_becomes_a_tag(stored):
    text = write.write(stored).read_text()
    assert text.count("</script>") == 4 and "<img" not in text and "onerror" in block(text)
    script = "".join((page.HERE / name).read_text() for name in ("triangle.js", "page.js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", script)


def test_the_page_is_one_small_file_that_asks_for_nothing(stored):
    text = write.write(stored).read_text()
    assert len(text.encode()) < 2_000_000
    assert "default-src 'none'" in text
    assert not re.search(r"<link|<script[^>]+src=|@import|url\(", text)


def test_the_same_run_gives_the_same_bytes_and_its_file_is_left_alone(stored, tmp_path):
    path = write.write(stored)
    before, time = path.read_bytes(), path.stat().st_mtime_ns
    write.write(stored)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, time)
    moved = shutil.copytree(stored, tmp_path / "elsewhere")
    (moved / write.NAME).unlink()
    assert write.write(moved).read_bytes() == before


def test_seeds_are_averaged_and_answers_are_the_first_ones(stored, tmp_path):
    root = tmp_path / "compare"
    for seed, shift in ((0, 0.0), (1, 0.5), (10, 1.0)):
        folder = shutil.copytree(stored, root / str(seed) / "meal")
        results = json.loads((folder / "pareto.json").read_text())
        results["points"] = [[v + shift for v in point] for point in results["points"]]
        results["samples"][0]["prompt"] = f"seed {seed}"
        (folder / "pareto.json").write_text(json.dumps(results))
    entries = content.find(root)
    assert [folder.parent.name for folder in entries[0].folders] == ["0", "1", "10"]
    result = content.gather(entries)["methods"][0]
    original = json.loads((stored / "pareto.json").read_text())["points"]
    assert result["points"][0] == pytest.approx([v + 0.5 for v in original[0]], rel=1e-4)
    assert result["low"] is None and result["samples"][0]["prompt"] == "seed 0"


def test_a_measure_that_a_seed_of_an_older_version_lacks_is_left_out(stored, tmp_path):
    root = tmp_path / "compare"
    for seed in (0, 1):
        path = shutil.copytree(stored, root / str(seed) / "meal") / "pareto.json"
        results = json.loads(path.read_text())
        assert "spacing" in results
        path.write_text(json.dumps({name: v for name, v in results.items() if not (seed and name == "spacing")}))
    measures = content.gather(content.find(root))["methods"][0]["measures"]
    assert "spacing" not in measures and "sparsity" in measures


def test_hypervolumes_from_different_points_are_moved_to_one(stored, tmp_path):
    (tmp_path / "study.json").write_text(json.dumps({"variants": {n: {"label": n} for n in ("a", "b")}}))
    for variant, reference in (("a", [-1.0, 0.0]), ("b", [0.0, -2.0])):
        path = shutil.copytree(stored, tmp_path / variant / "0") / "pareto.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"reference": reference}))
    result = content.gather(content.find(tmp_path))
    points = np.array(json.loads((stored / "pareto.json").read_text())["points"])
    expected = front.hypervolume(points, np.array([-1.0, -2.0]))
    for method in result["methods"]:
        assert method["measures"]["hypervolume"] == pytest.approx(expected, rel=1e-4)
        assert method["history"][-1][1] == pytest.approx(expected, rel=1e-4)
        assert "hypervolume" not in method["intervals"] and "share_of_true_hypervolume" not in method["measures"]
    assert result["note"].startswith("Hypervolumes are from (-1, -2), the lowest of the points")
    assert content.gather(content.find(stored))["note"] is None


def test_a_comparisons_report_is_of_its_last_command(stored, tmp_path):
    for seed in (0, 1, 2):
        for method in ("meal", "static"):
            shutil.copytree(stored, tmp_path / str(seed) / method)
    written = {
        "compare.json": {"Meal": ["0/meal", "1/meal", "2/meal"]},
        "compare_tokens.json": {"Meal": ["1/meal"], "static targets": ["1/static"]},
    }
    for time, (name, runs) in enumerate(written.items()):
        (tmp_path / name).write_text(json.dumps({"methods": {}, "runs": runs}))
        os.utime(tmp_path / name, (time, time))
    found = {e.label: [str(f.relative_to(tmp_path)) for f in e.folders] for e in content.find(tmp_path)}
    assert found == written["compare_tokens.json"]
    os.utime(tmp_path / "compare.json", (9, 9))
    assert [len(e.folders) for e in content.find(tmp_path)] == [3]


def test_at_equal_tokens_the_report_is_of_the_evaluations_that_were_compared(stored, tmp_path):
    for method in ("meal", "static"):
        shutil.copytree(stored, tmp_path / "0" / method)
    path = tmp_path / "0" / "static" / "pareto.json"
    thrifty = json.loads(path.read_text())
    spent = thrifty["budget"]["rollout_tokens"]
    path.write_text(json.dumps(thrifty | {"budget": thrifty["budget"] | {"rollout_tokens": spent - 1}}))
    runs = {"Meal": ["0/meal"]} | {"static targets": ["0/static"]}
    (tmp_path / "compare_tokens.json").write_text(json.dumps({"methods": {}, "runs": runs, "equal": "tokens"}))
    before = json.loads((stored / "evals" / "000000.json").read_text())
    shown = json.loads(block(write.write(tmp_path).read_text()))
    meal = shown["methods"][0]
    assert meal["points"] == pytest.approx(np.round(before["points"], 12), rel=1e-4)
    assert meal["budget"]["rollout_tokens"] == 0 and meal["seconds"] is None
    assert [step for step, _ in meal["evaluations"]] == [0]
    assert meal["samples"][0]["answers"][1]["response"] == before["samples"][0]["answers"][1]["response"]
    assert shown["title"].endswith(", at equal tokens sampled") and "(--equal=tokens)" in shown["note"]


def test_a_studys_report_is_of_its_own_seeds(stored, tmp_path):
    for seed in (0, 1, 10):
        shutil.copytree(stored, tmp_path / "meal" / str(seed))
    (tmp_path / "study.json").write_text(json.dumps({"variants": {"meal": {"label": "Meal", "seeds": [10, 1]}}}))
    assert [f.name for f in content.find(tmp_path)[0].folders] == ["1", "10"]


def test_a_studys_variants_stand_side_by_side_under_their_labels(stored, tmp_path):
    labels = {"no_net": "Meal without its net", "meal": "Meal", "unfinished": "static targets"}
    variants = {name: {"label": label} for name, label in labels.items()}
    (tmp_path / "study.json").write_text(json.dumps({"variants": variants}))
    for variant, seed in (("meal", 0), ("meal", 1), ("no_net", 0)):
        shutil.copytree(stored, tmp_path / variant / str(seed))
    (tmp_path / "unfinished" / "0").mkdir(parents=True)
    entries = content.find(tmp_path)
    assert [(e.label, len(e.folders)) for e in entries] == [("Meal without its net", 1), ("Meal", 2)]
    assert "Meal without its net" in write.write(tmp_path).read_text()


def test_long_curves_are_thinned_by_averages(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i, "utility": float(i)}) + "\n" for i in range(480)))
    path.write_bytes(path.read_bytes() + b"\xff\xfe\x00")  # as a disk that is full may leave it
    curves = content._curves(path, ())
    assert curves["step"][:2] == [1, 3] and curves["utility"][:2] == [0.5, 2.5] and len(curves["step"]) == 240


def test_a_directory_without_a_finished_run_is_a_message(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished run"):
        write.write(tmp_path)
