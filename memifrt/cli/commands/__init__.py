"""One module for each command: ``COMMAND`` has its name, arguments and function."""
