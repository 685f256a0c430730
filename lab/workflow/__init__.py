"""The jobs of the matrix -> files that make a CI service or systemd run them."""

from lab.workflow.files import Night, github, gitlab, systemd

__all__ = ["Night", "github", "gitlab", "systemd"]
