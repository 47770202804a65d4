"""What was said in a call, as the server tells it: its calls API, for people.

The simulator hears sounds; the words are the server's own account, and no part of the verdict.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import httpx
import trio

RECORD_S: Final = 2.0  # a call's record is complete by then
ANSWER_S: Final = 2.0
_AGAIN_S: Final = 0.1


async def read_transcript(server: str, call_sid: str, api_key: str) -> str:
    """Return what was said, or why that is not known; a line each.

    Args:
        server: http(s) base.
        api_key: empty: none is given.

    Raises nothing that concerns the server: the call is over, and its verdict stands.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    url = f"{server.rstrip('/')}/calls/{call_sid}"
    record: Mapping[str, Any] = {}
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_S, headers=headers) as client:
            with trio.move_on_after(RECORD_S):
                while record.get("outcome") is None:
                    answer = await client.get(url)
                    if answer.status_code in (401, 403):
                        return "what was said is shown to a VOICEBOT_API_KEY that may read\n"
                    record = answer.raise_for_status().json()
                    await trio.sleep(_AGAIN_S)
            lines = [*_lines(record)]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError, KeyError, AttributeError):
        return f"what was said is not known: GET {url} has no record of it\n"
    return "\n".join(["what was said, by the server's account:", *lines, ""])


def _lines(record: Mapping[str, Any]) -> Iterator[str]:
    for turn in record["turns"]:
        if turn["caller"]:
            yield f"  caller  {turn['caller']}"
        for tool in turn["tools"]:
            arguments = json.dumps(tool["arguments"], ensure_ascii=False)
            yield f"  tool    {tool['name']} {arguments}: {tool['result']}"
        heard = turn["heard"] or "(nothing was heard)"
        yield f"  bot     {heard}{' [interrupted]' if turn['interrupted'] else ''}"
