"""The race of kernel variants: one command for a few minutes of a GPU.

`python -m svg2.bench.race --minutes 6` checks every variant of every kernel, times the right ones
by halving beside the kernels of others, writes what won on this chip into `kernels/winners.json`
and then measures blocks of whole transformers. Nothing here runs the method on a video: dense and
sparse runs that take turns are `svg2/runs/race.py`.

A variant that crashes, hangs or is wrong costs itself alone: each is tried in a process of its
own, and the process that times them is watched and started again without the one that failed.
"""
