"""Random days of users with several devices, and chat files, against a plain model of what all of
them should see: ``python -m tests.usermodel --help``."""
