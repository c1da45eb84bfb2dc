"""The selection steps of published implementations, rewritten with their loops: what vtprune's are compared with.

Each function is written from a description of the method's published code and does its work the way that code does:
one picture at a time, a Python loop over picks, rounds or tokens where there is one, whole attention maps, and a wait
for the device where the code reads a number or a mask back. They are slow on purpose and serve no other end; every one
selects what the recorded outputs of the published code say (`tests/eval/test_official.py`).

Shapes are those of one picture: `(1, ...)` where the code has a batch dimension. Attention maps are whole,
`(views, heads, queries, keys)`, as `eager_map` makes them; those of encoders hold CLS at 0 on both sides.
"""
