"""Pure tensor functions that the methods are made of: they know neither a model nor a method.

All are batched over pictures, `(batch, tokens, dim)`, compute in at least float32 whatever they are given, break ties
towards the lower index and never wait for the device. `vtprune.ops.reference` restates each as a plain loop.
"""
