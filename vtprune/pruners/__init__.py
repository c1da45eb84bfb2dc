"""The methods, one file each; `vtprune.registry` finds them by themselves."""
