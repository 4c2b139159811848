"""How tests have XLA compile: tiny models spend their time in the compiler, not in the program.

Half of that is LLVM's passes; of the rest, more than half goes with one module of code and XLA's older emitters (a step: 21 →
8 s of CPU in jax 0.10.2).
"""

QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)

# Compiler options that take QUICK back for one program: where its rounding would depend on the arrays' shapes or on the CPU.
AS_RUNS_ARE = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}

# The rest is memory: a compilation makes and drops millions of small objects. Processes that keep what they freed, and workers
# that look for garbage less often, take less CPU time (two steps compiled in one process: 37 → 30 s and 34 → 28 s).
MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_TOP_PAD_": str(2**26), "MALLOC_TRIM_THRESHOLD_": str(10**9)}
GARBAGE = 100_000  # allocations before Python looks; as it starts, 700


def devices(number: int) -> str:
    """The flag for that many CPU devices."""
    return f"--xla_force_host_platform_device_count={number}"
