"""Every option of a conversion, declared once: the command line and the Python API are made from these."""
