"""Write a checkpoint under other names: python tools/convert_checkpoint.py IN OUT --to ours"""

import argparse

from ..checkpoint.convert import TARGETS, convert_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description='Convert a SHViT checkpoint between the forms of its sources.')
    add = parser.add_argument
    add('source', metavar='IN', help='any SHViT checkpoint, a file or a URL')
    add('target', metavar='OUT', help='the new file: .safetensors, .pth or .bin')
    add('--to', choices=TARGETS, required=True, help='whose names the new file has')
    add('--publish', action='store_true', help='keep only weights and meta, and put the hash into the name')
    arguments = parser.parse_args()
    done = convert_checkpoint(arguments.source, arguments.target, arguments.to, arguments.publish)
    left_out = f'; left out: {", ".join(done.left_out)}' if done.left_out else ''
    print(f'{done.path}: {done.count} tensors from {done.form} to {arguments.to}{left_out}')
