"""XLA's options for programs that run once: compiled fast instead of well.

Tests and the pages of the docs set them in the environment before JAX starts.
"""

import importlib.metadata

FLAGS = [
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_cpu_parallel_codegen_split_count=1",
]
# Later versions of JAX do not know it, and abort.
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
  FLAGS.append("--xla_cpu_use_fusion_emitters=false")
XLA_FLAGS = " ".join(FLAGS)
