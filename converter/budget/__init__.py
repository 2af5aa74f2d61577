"""The best mix of formats that fits a size: ``--target-size``."""
