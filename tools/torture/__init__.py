"""Torture of files, processes and native code: the parts of `tools/torture` and `tools/torture-native`."""
