"""The command lines: everything that parses arguments or prints."""
