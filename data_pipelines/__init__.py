"""Raw videos or synthetic heads -> records -> Grain batches. NumPy only: workers import it."""
