"""Torture of files and processes: what is read, what is killed, and what cannot be written."""
