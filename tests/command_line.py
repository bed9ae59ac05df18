"""The command line, run in this process: a new one would spend its time importing."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from graphmod.cli import main
from graphmod.cli.commands import console


def graphmod(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``graphmod`` with some arguments, and return its exit code and what it printed."""
    streams = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        patch.setattr(sys, "argv", ["graphmod", *map(str, arguments)])
        patch.setattr(console, "width", 160)  # it has read by now what the environment says of columns
        patch.setenv("NO_COLOR", "1")
        with pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code if isinstance(ended.value.code, int) else 0
    return subprocess.CompletedProcess(arguments, code, streams[0].getvalue(), streams[1].getvalue())
