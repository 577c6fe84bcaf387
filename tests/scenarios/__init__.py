"""Documentation that runs: scenario files of the protocol; see ``tests.scenarios.runner``."""
