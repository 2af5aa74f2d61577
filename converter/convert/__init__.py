"""The conversion: read, quantize, write, check; one model or many."""
