"""How the threads of torch wait for one another. No torch: it must be told before it is loaded."""

import os


def let_threads_sleep() -> None:
    """Has idle OpenMP threads sleep instead of spin, unless the user has said how they wait.

    Spinning threads take the processor from those that they wait for where other jobs run: with
    five jobs on two cores, a verification of 135 M parameters was at 68 % after 500 s, and took
    86 s with threads that sleep. What is computed stays the same. It has no effect once torch is
    loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
