"""Serve a model over HTTP: an API, a page, and the forms of Paddle Serving and PaddleHub. The same as `ppvilg-server`.

python deploy/serve.py --model runs/vilg_emoji --dual-encoder runs/dual_encoder_emoji
python deploy/serve.py --model export/vilg_emoji --host 0.0.0.0 --grpc-port 9998 --api-keys-file keys.txt
python deploy/serve.py --config deploy/server.yml
"""

from ppvilg.cli import run
from ppvilg.server.command import main

if __name__ == "__main__":
    run(main)
