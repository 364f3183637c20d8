"""The commands by name: one line of help each, so that `memvm --help` need not import any of them.

A command is a module memvm.cli.NAME with `configure(parser)`, which adds its arguments and help, and
`execute(arguments)`, which does it and returns the exit status.
"""

from __future__ import annotations

SUMMARIES = {
    "run": "run a program as a guest",
    "restore": "bring a guest back from a checkpoint",
    "checkpoint": "save a running guest to a file",
    "suspend": "save a running guest to a file, and end it",
    "measure": "tell the launch digest of a program, and what makes two differ",
    "inspect": "show what is in a checkpoint",
    "disk": "make encrypted disks for guests, fill and read them, change their keys",
    "files": "show, or extract, the files that a saved guest has in memory",
    "merge": "make one file of a checkpoint and its parents",
    "dirty": "show how much memory a guest writes, and where",
    "heatmap": "draw a recorded trace: address against time",
    "replay": "compare what prefetch policies would have done on a recorded trace",
    "trace": "show which pages a running guest accesses",
    "ps": "list the running guests",
    "top": "watch the running guests",
    "config": "show the security settings of a guest, or change them",
    "attest": "have a guest attested by a verifier",
    "platform": "make the keys with which evidence is signed here",
    "reference": "sign or check reference values for verifiers",
    "verifier": "be a verifier, that appraises evidence and issues tokens",
    "broker": "keep disks' keys, and give them to guests that are attested",
    "keeper": "keep the keys of sealed guests' checkpoints",
    "token": "show a token, or check one",
    "pause": "stop a guest where it is",
    "resume": "let a paused guest go on",
    "kill": "end guests",
    "demo": "show how a secret comes to a sealed guest, and to nobody else",
    "doctor": "show what this machine can do, and what to do about what it cannot",
}

EXAMPLES = """\
examples:
  memvm run -- busybox sort < words.txt
  memvm run --name hub --ram 512M -- ./server --port 0
  memvm checkpoint hub hub.ckpt --live
  memvm restore hub.ckpt

`memvm COMMAND --help` tells more of each. A guest's standard streams and exit status pass through;
memvm's own messages go to standard error.
"""
