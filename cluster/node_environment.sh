# shellcheck shell=bash
# Sourced before Ray is started on a machine of aws.yaml or slurm.sbatch.
export PATH="${TERRAFM_VENV:-$HOME/venv}/bin:$PATH"
# Without it every process that reaches a port may run code here.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
# A node that falls silent is given up after ten seconds instead of most of a minute (docs/elastic.md).
export RAY_health_check_period_ms=1000
export RAY_health_check_timeout_ms=3000
export RAY_health_check_failure_threshold=3
# A job's interpreter is the one that Ray runs with, whatever started the driver.
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
export RAY_USAGE_STATS_ENABLED=0
# Cells are read by a client that does not follow redirects to another region (docs/storage.md).
export AWS_DEFAULT_REGION="${AWS_DEFAULT_REGION:-eu-central-1}"
