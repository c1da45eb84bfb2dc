"""The mechanism: hooks, gathers, masks and caches. It knows no method and no model family."""
