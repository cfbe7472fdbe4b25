"""Why a job failed: its logs, its metrics and Slurm's word, boiled down to one paragraph."""

from megatune.launch.digest.digest import Digest, digest_run

__all__ = ["Digest", "digest_run"]
