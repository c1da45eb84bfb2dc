"""Measuring what pruning costs and buys: the embedded benchmark, lmms-eval, sweeps and plots."""

if __name__ != "vtprune.eval":
    raise ImportError("this folder is the package 'vtprune.eval': import it by that name")
