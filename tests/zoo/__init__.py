"""One file a model type: its tiny configuration, and inputs as its processor would make them. Nothing is downloaded."""

from __future__ import annotations
