"""The jobs of the matrix -> a night: run within a budget, compared with earlier nights, kept."""
