"""Torture of files, processes and native code: what `tools/torture*` run."""
