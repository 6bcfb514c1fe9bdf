"""Three studies of how language models learn what nobody meant them to learn, on one training core."""

import os

# How long PyTorch's threads turn in place while they wait for each other; read when torch is loaded. With GNU OpenMP's own
# number, 300,000 turns, one other program on a core makes small operations wait for time slices (docs/decisions.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
