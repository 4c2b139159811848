"""Trains a study's table of runs, tests its questions over seeds, and writes study.md, study.json, figures and report.html.

    python -m meal_jax.study --config=configs/study/toy.py --workdir=runs/study_toy
    python -m meal_jax.study --config=configs/study/toy.py --workdir=runs/study_toy --only=static,no_net --jobs=2
    python -m meal_jax.study --config=configs/study/toy.py --workdir=runs/study_toy --report

A study is a base configuration, variants of it, seeds, and questions about pairs of variants (meal_jax/study/plan.py). Each
run is an ordinary run of `meal_jax.main` in WORKDIR/VARIANT/SEED, in a process of its own with one thread. What each prints is
in WORKDIR/logs. The same command again resumes runs that were cut short and trains those that are missing; finished ones are
left alone, and more seeds or variants may be added. A folder that holds another configuration's run is refused before
anything is trained. A run that fails is named, and the others go on. study.md is about what --only names, or about everything.

On a GPU, give the number of runs that fit into its memory together as --jobs.
"""

from pathlib import Path

from absl import flags

from meal_jax import command


def study_as_flags_say() -> int:
    f = flags.FLAGS
    root = Path(f.workdir) if f.workdir else Path("runs") / f"study_{Path(command.workdir()).name}"
    return run(f.config, root.expanduser(), f.only, f.jobs, f.report)


def run(config, root: Path, only: list[str], jobs: int, report: bool) -> int:
    """Trains and reports; returns the exit status, 1 where a run failed and 75 where the study was told to stop.

    Args:
      config: the study, `plan.default`.
      root: the study's workdir.
      only: names of questions and curves, [] for all.
      jobs: runs at a time, 0 for one per core.
      report: trains nothing.

    Raises:
      ValueError, FileNotFoundError: the study, or one of its variants, cannot run here; nothing was written.
    """
    from meal_jax.report import write as report_page
    from meal_jax.runtime import distributed, identity
    from meal_jax.saved_run import need_no_run
    from meal_jax.study import measures, plan, runs, workers, write

    distributed.refuse_several("python -m meal_jax.study")
    plan.check(config)
    measures.check(config)
    need_no_run(root, "the study")
    study = plan.choose(config, only)
    table = runs.table(study, root)
    left, jobs = [row for row in table if not row.finished], jobs or workers.cores()
    say(f"{len(table)} runs, {len(table) - len(left)} of them finished" + f"; {jobs} at a time" * (not report))
    outcomes, failed = [], write.read_failures(root) if report else {}
    if left and not report:
        with identity.hold(root):
            outcomes = workers.train(left, jobs, root / "logs", say, len(table))
    failed |= {o.run.name: o.message for o in outcomes if o.how == "failed"}
    finished = {row.name: row for row in runs.table(study, root) if row.finished}
    failed = {name: message for name, message in failed.items() if name not in finished}
    records = {v.name: {} for v in study.variants}
    for row in finished.values():
        records[row.variant][row.seed] = measures.read(row.folder, config.gap)
    records, reference = measures.from_one_point(records)
    root.mkdir(parents=True, exist_ok=True)
    path = write.write(study, table, records, failed, root, reference)
    for name, message in failed.items():
        say(f"failed: {name}: {message}")
    say(f"study: {path}")
    if finished:
        report_page.write_and_say(root)
    if any(o.how == "stopped" for o in outcomes):
        say("stopped; run the same command to resume")
        return workers.STOPPED
    return int(bool(failed))


def say(text: str) -> None:
    """Prints a line at once, also into a file."""
    print(text, flush=True)


if __name__ == "__main__":
    command.define_config()
    flags.DEFINE_string("workdir", None, "Where the runs write, runs/study_NAME of the study's file by default.")
    flags.DEFINE_list("only", [], "Names of questions and curves: only the runs that these need.")
    flags.DEFINE_integer("jobs", 0, "Runs at a time; 0 is one per core.", lower_bound=0)
    flags.DEFINE_bool("report", False, "Trains nothing and analyses the runs that are finished.")
    command.main(study_as_flags_say, kind="study")
