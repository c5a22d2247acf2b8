"""The trainer of small models that are no language models: pictures, tables, series and texts → classes or numbers."""
