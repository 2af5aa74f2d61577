"""The plan of a conversion, shown to a person or written as a layer configuration."""
