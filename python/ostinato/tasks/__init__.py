"""The jobs of ``python -m ostinato``: train on real data, generate, forecast, benchmark."""
