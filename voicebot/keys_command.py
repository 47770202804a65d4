"""`voicebot keys`: make a key of the calls API, or see which the settings have."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from voicebot import config
from voicebot.api_keys import ALL, SCOPES, new_key

ENV_FILE: Final = Path(".env")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "Make a key of the calls API, or show those that VOICEBOT_API_KEYS has. The server keeps "
        "no key, only its SHA-256: what is lost is made anew."
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="new | check")
    new = commands.add_parser(
        "new",
        help="make a key",
        description="Print a new key, once, and the entry that lets it in. Nothing is stored.",
        epilog="scopes: "
        + "; ".join(f"{name}: {what}" for name, what in SCOPES.items())
        + f"; {ALL}: all of these",
    )
    new.add_argument("name", metavar="NAME", help="whose it is; in logs and limits")
    new.add_argument(
        "--scopes", required=True, metavar="A,B", help=f"of {', '.join(SCOPES)}, or {ALL}"
    )
    new.set_defaults(run=_new)
    check = commands.add_parser("check", help="show names and scopes of the configured keys")
    check.set_defaults(run=_check)


def _new(args: argparse.Namespace) -> int:
    scopes = [scope for scope in args.scopes.replace(",", " ").split() if scope]
    key, known = new_key(args.name, scopes)
    print("the key, for whoever calls (Authorization: Bearer …, or VOICEBOT_API_KEY of")
    print("`voicebot call`); it is shown here and never again:")
    print(f"\n  {key}\n")
    print("its entry, for VOICEBOT_API_KEYS of the server, behind a comma if there are others:")
    print(f"\n  {known.entry}")
    return 0


def _check(args: argparse.Namespace) -> int:
    keyring = config.load(env_file=ENV_FILE).keyring
    for key in keyring:
        print(f"{key.name:<32} {', '.join(sorted(key.scopes))}")
    if not keyring:
        print("VOICEBOT_API_KEYS has none; `voicebot keys new NAME --scopes all` makes one")
    return 0 if keyring else 1
