"""Whether the processes that srun started meet over MPI: `srun --mpi=pmix ... python -m megatune.data.mpi_check`."""

import sys

from megatune.data.mpi_team import find_team
from megatune.errors import MegatuneError


def main() -> None:
    """Exit code 0 where every process has heard of every other one. Collective: all of them run it."""
    try:
        team = find_team()
        met = team.gather(lambda: team.rank)
        assert met == list(range(team.size)), "processes are in order"
    except MegatuneError as error:
        print(f"megatune: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
