"""What may happen to a file on a disk: each takes its path."""

import json

from hostile import pickled

from cleanprior.cells.reading import encode
from cleanprior.training.checkpoint import read_tensors, write_tensors


def flip(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("no such thing")


def without_hash(change):
    """Change a JSON file as somebody would who takes its hash away."""

    def changed(path):
        record = json.loads(path.read_text())
        del record["sha256"]
        change(record)
        path.write_text(json.dumps(record))

    return changed


def changed_number(path):
    text = path.read_text()
    assert text.count('"psnr": ') >= 1
    before, _, after = text.partition('"psnr": ')
    path.write_text(f'{before}"psnr": 9{after}')


def other_cell(path):
    record = json.loads(path.read_text())
    path.write_text(encode({k: v for k, v in record.items() if k != "sha256"} | {"cell": "0" * 16}))


def newer(path):
    without_hash(lambda r: r.update(format=2))(path)


def of_another(path):
    tensors, meta = read_tensors(path)
    write_tensors(path, tensors, meta | {"of": "0" * 16})


def lacking(path):
    tensors, meta = read_tensors(path)
    write_tensors(path, dict(list(tensors.items())[1:]), meta)


def pickle_in(path):
    path.write_bytes(pickled(path.with_name("canary")))


def unlink(path):
    path.unlink()
