"""Launchers of several processes (torchrun, slurm, MPI): which one started this process, and as which rank."""

import os
import re
from collections.abc import MutableMapping

from ..common.errors import UsageError

DEFAULT_PORT = 29500
# The variables in which a launcher gives a process the number of processes, its rank, and its rank on its machine.
VARIABLES = {
    'pytorch': ('WORLD_SIZE', 'RANK', 'LOCAL_RANK'),
    'slurm': ('SLURM_STEP_NUM_TASKS', 'SLURM_PROCID', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


def find_launcher(named: str | None, environment: MutableMapping[str, str] = os.environ) -> str:
    """Return ``'pytorch'`` if this is one of several processes, else ``'none'``, and set torch's variables.

    Without a launcher that the user named it is found in the environment. torch's variables come first, since torchrun
    may itself run under slurm or MPI, once on each node. Under slurm only a step of several tasks counts (``srun``):
    the script of a batch job is a single process.
    """
    if named is None and 'TORCHELASTIC_RUN_ID' in environment:
        named = 'pytorch'
    if named is None:
        named = next((name for name in VARIABLES if is_one_of_several(environment, name)), 'none')
    if named == 'none':
        return 'none'
    if named == 'slurm':
        environment.setdefault('SLURM_STEP_NUM_TASKS', environment.get('SLURM_NTASKS', ''))
        if nodes := environment.get('SLURM_STEP_NODELIST') or environment.get('SLURM_NODELIST'):
            environment.setdefault('MASTER_ADDR', first_host(nodes))
        environment.setdefault('MASTER_PORT', str(port_of_job(environment.get('SLURM_JOB_ID', '0'))))
    if named == 'mpi' and environment.get('OMPI_COMM_WORLD_LOCAL_SIZE') == environment.get('OMPI_COMM_WORLD_SIZE'):
        environment.setdefault('MASTER_ADDR', '127.0.0.1')
    environment.setdefault('MASTER_PORT', str(DEFAULT_PORT))
    if named == 'pytorch':
        environment.setdefault('LOCAL_RANK', '0')
    for torch_name, name in zip(VARIABLES['pytorch'], VARIABLES[named], strict=True):
        if environment.get(name):
            environment[torch_name] = environment[name]
    if missing := [name for name in (*VARIABLES['pytorch'], 'MASTER_ADDR') if not environment.get(name)]:
        raise UsageError(
            f'--launcher {named} needs {", ".join(missing)} in the environment, which the launcher sets: start the '
            f'tool with torchrun, srun or mpirun, or without --launcher'
        )
    return 'pytorch'


def is_one_of_several(environment: MutableMapping[str, str], launcher: str) -> bool:
    """Return whether the variables of a launcher are set, for more than one process."""
    world_size, rank, _ = VARIABLES[launcher]
    count = environment.get(world_size, '')
    return rank in environment and count.isdigit() and int(count) > 1


def first_host(nodes: str) -> str:
    """Return the first host of a slurm list: ``node[03-07,9],login`` gives ``node03``."""
    match = re.match(r'([^,\[]+)(?:\[(\w+)[^\]]*\]([^,\[]*))?', nodes)
    return ''.join(part or '' for part in match.groups()) if match else nodes


def port_of_job(job: str) -> int:
    """Return a port that other jobs on the same node are unlikely to take."""
    return 20000 + int(job) % 10000 if job.isdigit() else DEFAULT_PORT
