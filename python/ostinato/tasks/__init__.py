"""The main jobs, as ``python -m ostinato`` runs them: train on real data, generate, forecast, benchmark."""
