"""The benchmarks. Each is a module with a function `build`, from a configuration to a `task.Task`."""

BENCHMARKS = ("assistant", "reddit", "stories", "synthetic", "toy", "toy_attainable")
