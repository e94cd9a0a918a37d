"""Torture of files, processes and native code: what tools/torture and tools/torture-native run."""
