"""The order of the package's rooms: imports point down, and no two rooms import one another.

A room is a package of `meal_jax` or a module beside them. Those of one line may not import one another either. Imports
within functions count: they are imports all the same.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground floor up.
ROOMS = """
chips former_names limits console config_file field_types json_files
command
runtime
models
rollout
meal
fluency
pareto
baselines
methods
hf
classifiers
data
rewards
track combinations
config
cost
roofline
tasks
reward_training
build compiled_step
evaluate
run_writer
saved_run
inputs
report
train
generate
export
sft
testing compare parity answers_figure
study
aot
bench doctor reproduce serve
main
""".strip().splitlines()
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms.split()}
# The former names of commands: files of three lines that start the new ones.
FORWARDS = {"models/check.py", "models/gguf.py", "rewards/train.py", "rewards/finetune.py"}


def modules(package: Path) -> dict[str, Path]:
    """Dotted names below the package, the package's own name left out, to files."""
    result = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if parts and str(path.relative_to(package)) not in FORWARDS:
            result[".".join(parts)] = path
    return result


def imports(known: dict[str, Path]) -> list[tuple[str, str]]:
    """(importing module, imported module), dotted names of `known`."""
    edges = []
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            targets = []
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "meal_jax":
                base = node.module.partition(".")[2]
                for alias in node.names:
                    full = f"{base}.{alias.name}" if base else alias.name
                    targets.append(full if full in known else base)
            elif isinstance(node, ast.Import):
                targets = [a.name.partition(".")[2] for a in node.names if a.name.split(".")[0] == "meal_jax"]
            edges += [(name, target) for target in targets if target and target != name]
    return edges


def upward(edges: list[tuple[str, str]], known: dict[str, Path], levels: dict[str, int]) -> list[str]:
    """A sentence for each import that does not point down, naming both files."""
    out = []
    for source, target in edges:
        local, site = source.split(".")[0], target.split(".")[0]
        if local != site and levels[site] >= levels[local]:
            out.append(f"{known[source]} ({local}) imports {known.get(target, target)} ({site}), which is not below it")
    return out


def circle(edges: list[tuple[str, str]]) -> list[str]:
    """The modules of one circle of imports, [] if there is none."""
    graph: dict[str, list[str]] = {}
    for source, target in edges:
        graph.setdefault(source, []).append(target)
    done, trail = set(), []

    def visit(name):
        if name in trail:
            return trail[trail.index(name) :]
        if name in done:
            return []
        trail.append(name)
        for target in graph.get(name, ()):
            if result := visit(target):
                return result
        done.add(trail.pop())
        return []

    return next((result for name in graph if (result := visit(name))), [])


def test_every_room_has_its_place():
    rooms = {name.split(".")[0] for name in modules(ROOT / "meal_jax")}
    assert rooms == LEVELS.keys()


def test_every_import_points_down():
    known = modules(ROOT / "meal_jax")
    assert not upward(imports(known), known, LEVELS)


def test_no_modules_import_in_a_circle():
    assert not circle(imports(modules(ROOT / "meal_jax")))


def test_an_upward_import_and_a_circle_are_found(tmp_path):
    for name, text in {
        "low/a.py": "def f():\n    from meal_jax.high import b\n",
        "high/b.py": "import meal_jax.low.a\n",
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    known = modules(tmp_path)
    edges = imports(known)
    (sentence,) = upward(edges, known, {"low": 0, "high": 1})
    assert "low/a.py" in sentence and "high/b.py" in sentence
    assert sorted(circle(edges)) == ["high.b", "low.a"]


def test_the_decoders_room_holds_the_decoder_alone():
    files = {path.stem for path in (ROOT / "meal_jax/models").glob("*.py") if f"models/{path.name}" not in FORWARDS}
    assert files - {"__init__"} == {"attention", "decode_attention", "lora", "policy", "rotary", "transformer"}


@pytest.mark.parametrize("forward", sorted(FORWARDS))
def test_a_forward_starts_a_command_that_is_there(forward):
    text = (ROOT / "meal_jax" / forward).read_text()
    target = text.split('run_module("meal_jax.')[1].split('"')[0]
    assert (ROOT / "meal_jax" / (target.replace(".", "/") + ".py")).exists() and len(text.splitlines()) <= 6


def test_the_configuration_loads_few_modules():
    count = "import sys, meal_jax.config; print(sum(n.startswith('meal_jax') for n in sys.modules))"
    run = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(run.stdout) <= 30
