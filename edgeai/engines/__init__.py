"""What runs a model: one package or module for each runtime, all behind `base.Engine`."""
