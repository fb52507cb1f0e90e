"""Write a trained model as one folder for Paddle Inference, which tools/infer.py and ViLGPipeline read like a run.

python deploy/export.py -c configs/vilg_emoji.yml --out export/vilg_emoji
python deploy/export.py --checkpoint runs/vilg_emoji --dual-encoder runs/dual_encoder_emoji --out export/vilg_emoji
python deploy/export.py --checkpoint runs/vilg_emoji --onnx --out export/vilg_emoji_onnx
python deploy/export.py --checkpoint runs/vilg_emoji --lora runs/own_pictures/adapter --out export/own_pictures
"""

import argparse
from pathlib import Path

from ppvilg.cli import add_compute_arguments, add_lora_arguments, compute_options, run
from ppvilg.config import ViLGExperiment, load_config
from ppvilg.files import check_new_folder


def main() -> None:
    """Parse the arguments and export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", help="a config whose run (train.output) is exported")
    parser.add_argument("--checkpoint", help="folder of a model or a run, where it is another than the config's run")
    parser.add_argument("--dual-encoder", help="folder of a dual encoder, for the best of several images")
    add_lora_arguments(parser)
    parser.add_argument("--onnx", action="store_true", help="also for ONNX Runtime, exact and with 8-bit weights")
    add_compute_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    arguments = parser.parse_args()
    if arguments.config is None and arguments.checkpoint is None:
        raise ValueError("there is no model: give a config (-c) or a run's folder (--checkpoint)")
    check_new_folder("--out", arguments.out)
    folder = arguments.checkpoint or load_config(arguments.config, kind=ViLGExperiment).train.output

    options = compute_options(arguments)
    engine = options.pop("engine")

    from ppvilg import ViLGPipeline
    from ppvilg.dual_encoder import DualEncoderScorer
    from ppvilg.export.write import origin, write_export

    pipe = ViLGPipeline.from_pretrained(folder, lora=arguments.lora, lora_scale=arguments.lora_scale, **options)
    made_from, dual_encoder = {}, None
    if arguments.dual_encoder is not None:
        scorer = DualEncoderScorer.from_pretrained(arguments.dual_encoder)
        dual_encoder = (scorer.model, scorer.text_tokenizer, scorer.config)
        made_from["dual_encoder"] = origin(arguments.dual_encoder)
    made_from["model"] = origin(folder)
    if arguments.lora is not None:
        made_from["lora"] = origin(arguments.lora) | {"scale": arguments.lora_scale}
    write_export(
        arguments.out, pipe.model, pipe.vqgan, pipe.text_tokenizer, pipe.config, made_from, dual_encoder, arguments.onnx, engine
    )
    print(arguments.out)


if __name__ == "__main__":
    run(main)
