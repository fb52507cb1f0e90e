"""Call the service, or any server with Paddle Serving's wire format (deploy/serve.py too).

python deploy/paddle_serving/client.py --text "Noto风格的红苹果" --output apple.png
python deploy/paddle_serving/client.py --image apple.png
python deploy/paddle_serving/client.py --grpc 127.0.0.1:9998 --text "Noto风格的红苹果" --output apple.png
"""

import argparse
import base64
import json
import sys
import urllib.request
from pathlib import Path


def main() -> None:
    """Parse the arguments, ask, and write the pictures or print the captions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:9999", help="of the server (default: %(default)s)")
    parser.add_argument("--grpc", metavar="HOST:PORT", help="ask over gRPC instead")
    parser.add_argument("--text", help="what the picture shows")
    parser.add_argument("--image", help="a picture file to caption, or with --text to complete")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another value, e.g. n=4 or seed=1")
    parser.add_argument("--output", default="picture.png", help="where pictures go; several are numbered (%(default)s)")
    arguments = parser.parse_args()
    values = dict(pair.split("=", 1) for pair in arguments.set)
    if arguments.text is not None:
        values["prompt"] = arguments.text
    if arguments.image is not None:
        values["image"] = base64.b64encode(Path(arguments.image).read_bytes()).decode()
    number, message, answered = ask_grpc(arguments.grpc, values) if arguments.grpc else ask_http(arguments.url, values)
    if number:
        sys.exit(f"error {number}: {message}")
    for caption in json.loads(answered.get("captions", "[]")):
        print(caption)
    pictures = json.loads(answered.get("images", "[]"))
    path = Path(arguments.output)
    for i, encoded in enumerate(pictures):
        target = path if len(pictures) == 1 else path.with_stem(f"{path.stem}_{i}")
        target.write_bytes(base64.b64decode(encoded))
        print(target)


def ask_http(url: str, values: dict[str, str]) -> tuple[int, str, dict[str, str]]:
    """Error number and text, values."""
    body = json.dumps({"key": list(values), "value": list(values.values())}).encode()
    with urllib.request.urlopen(f"{url}/ernievilg/prediction", body) as answer:
        content = json.load(answer)
    return content["err_no"], content["err_msg"], dict(zip(content["key"], content["value"], strict=True))


def ask_grpc(address: str, values: dict[str, str]) -> tuple[int, str, dict[str, str]]:
    """As `ask_http`."""
    import grpc

    from ppvilg.server.paddle_serving import PACKAGE, message_class

    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            f"/{PACKAGE}.PipelineService/inference",
            request_serializer=message_class("Request").SerializeToString,
            response_deserializer=message_class("Response").FromString,
        )
        response = call(message_class("Request")(key=list(values), value=list(values.values())))
    return response.err_no, response.err_msg, dict(zip(response.key, response.value, strict=True))


if __name__ == "__main__":
    main()
