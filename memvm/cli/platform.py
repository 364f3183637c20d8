"""`memvm platform`: the device key of this machine, and its certificates."""

from __future__ import annotations

import argparse
import socket

from memvm.attest.pcr import USUAL_PCR
from memvm.cli.parser import add_json


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm platform`."""
    parser.epilog = """\
init makes a test root and a device key under it, for labs: whoever can read root.key can make devices. They
are in MEMVM_PLATFORM_DIR, or in memvm/platform under XDG_DATA_HOME. A verifier is given root.pem.

With --tpm, the platform has a TPM 2.0 as well. It gets a key that signs only what the TPM itself has made,
and that the root vouches for, and a PCR in which the run-time registers of guests are anchored: of those
that `memvm run --tpm` or `memvm restore --tpm` started. The TCTI says where the TPM is: device:/dev/tpmrm0,
or swtpm:port=2321 for one in software. Needs tpm2-pytss (pip install '.[tpm]').

Where there is a platform, each checkpoint gets a seal, FILE.seal: without it, nobody vouches for what is
restored from the file, and a verifier is told.

examples:
  memvm platform init
  memvm platform init --tpm device:/dev/tpmrm0
  memvm platform show --json
"""
    parser.add_argument("action", choices=("init", "show"), help="make keys, or tell of them")
    parser.add_argument(
        "--device-name", metavar="NAME", default="", help="the device's name; the machine's if not given"
    )
    parser.add_argument("--tpm", metavar="TCTI", default="", help="the platform has a TPM, there")
    parser.add_argument(
        "--tpm-pcr", metavar="N", type=int, default=USUAL_PCR, help=f"the PCR to extend; {USUAL_PCR} if not given"
    )
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Make, or show."""
    from memvm.attest.places import platform_directory
    from memvm.attest.platform import make_platform
    from memvm.attest.told import platform_facts
    from memvm.report.records import to_json, to_text

    directory = platform_directory()
    if arguments.action == "init":
        if arguments.tpm:
            from memvm.attest.registration import check_tpm, register_tpm

            check_tpm(arguments.tpm, arguments.tpm_pcr)
        make_platform(directory, arguments.device_name or socket.gethostname())
        if arguments.tpm:
            register_tpm(directory, arguments.tpm, arguments.tpm_pcr)
    facts = platform_facts(directory)
    print(to_json(facts) if arguments.json else to_text(facts))
    return 0
