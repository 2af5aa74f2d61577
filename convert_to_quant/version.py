"""The version of the project, told here once, and the name it is installed under."""

VERSION = "0.2.0.dev0"

DISTRIBUTION = "convert-to-quant-toolkit"
"""What pip calls the project: the name of the import package belongs to another tool there (`namesake`)."""
