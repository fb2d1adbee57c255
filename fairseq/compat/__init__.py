"""Old import paths, and the little that stands behind them. Nothing else in the package imports from here."""
