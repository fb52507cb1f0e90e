"""A client of the HTTP API that needs nothing but Python; it shows pictures as they grow.

python deploy/clients/client.py "红苹果" --style noto --n 2 --output apples
python deploy/clients/client.py --caption apples/0.png
"""

import argparse
import base64
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path


def main() -> None:
    """Parse the arguments and ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", help="what the pictures show")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server (default: %(default)s)")
    parser.add_argument("--key", default=os.environ.get("KEY", ""), help="API key (default: the environment's KEY)")
    parser.add_argument("--style", help="one of the model's styles")
    parser.add_argument("--n", type=int, default=1, help="how many pictures")
    parser.add_argument("--seed", type=int, help="for the same pictures again")
    parser.add_argument("--candidates", type=int, help="draw so many and keep the best")
    parser.add_argument("--output", default=".", help="folder for the pictures (default: here)")
    parser.add_argument("--caption", metavar="FILE", help="caption this picture instead")
    arguments = parser.parse_args()
    if (arguments.prompt is None) == (arguments.caption is None):
        parser.error("give a prompt or --caption")
    try:
        if arguments.caption:
            caption(arguments)
        else:
            pictures(arguments)
    except urllib.error.HTTPError as error:
        sys.exit(f"{error.code}: {json.load(error)['error']['message']}")


def pictures(arguments: argparse.Namespace) -> None:
    """Write each picture file again and again until it is finished."""
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    asked = {"prompt": arguments.prompt, "style": arguments.style, "n": arguments.n, "seed": arguments.seed}
    for name, data in events(arguments, {**asked, "candidates": arguments.candidates, "stream": True}):
        if name == "error":
            sys.exit(data["error"]["message"])
        if name == "place":
            print(f"\rwaiting, {data['place']} before this one", end="", file=sys.stderr)
        if "data" not in data:  # `picture`: one that is done before the others, which `done` has too
            continue
        for i, entry in enumerate(data["data"]):
            (folder / f"{i}.png").write_bytes(base64.b64decode(entry["b64_json"]))
        if name == "partial":
            print(f"\r{data['tokens']} of {data['of']} tokens", end="", file=sys.stderr)
        else:
            print(f"\rseed {data['seed']}: {data['prompt']}", file=sys.stderr)
            for i, entry in enumerate(data["data"]):
                score = "" if entry["score"] is None else f"  score {entry['score']:.3f}"
                print(f"{folder / f'{i}.png'}  seed {entry['seed']}{score}")


def caption(arguments: argparse.Namespace) -> None:
    """Print the picture's caption."""
    encoded = base64.b64encode(Path(arguments.caption).read_bytes()).decode()
    with post(arguments, "/v1/captions", {"image": encoded}) as answer:
        for entry in json.load(answer)["captions"]:
            print(entry["text"])


def events(arguments: argparse.Namespace, request: dict) -> Iterator[tuple[str, dict]]:
    """Server-sent events: their names and their data."""
    name = ""
    with post(arguments, "/v1/images", request) as answer:
        for line in answer:
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)


def post(arguments: argparse.Namespace, path: str, request: dict):
    """The answer as it comes; raises `HTTPError` for an error."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {arguments.key}"}
    return urllib.request.urlopen(urllib.request.Request(arguments.url + path, json.dumps(request).encode(), headers))


if __name__ == "__main__":
    main()
