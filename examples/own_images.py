"""Your own images in folders, `train/circle/0.png` and so on: the folder's name is the class.

    python examples/own_images.py

The images are drawn here first: one shape each, with a random place, size, colour and noise.
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import trainpool as tp
from trainpool import models

SHAPES = ("circle", "square", "triangle")
SIZE = 32


def draw(shape: str, generator: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (SIZE, SIZE), tuple(generator.integers(0, 100, 3).tolist()))
    colour = tuple(generator.integers(130, 256, 3).tolist())
    r = int(generator.integers(7, 12))
    x, y = generator.integers(r, SIZE - r, 2).tolist()  # the centre: the whole shape is inside
    pencil = ImageDraw.Draw(image)
    match shape:
        case "circle":
            pencil.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        case "square":
            pencil.rectangle((x - r, y - r, x + r, y + r), fill=colour)
        case "triangle":
            pencil.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
    noisy = np.asarray(image) + generator.normal(0, 15, (SIZE, SIZE, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def make(folder: Path, count: int, generator: np.random.Generator) -> Path:
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True)
        for number in range(count):
            draw(shape, generator).save(folder / shape / f"{number}.png")
    return folder


with tempfile.TemporaryDirectory() as home:
    generator = np.random.default_rng(0)
    train, test = make(Path(home, "train"), 200, generator), make(Path(home, "test"), 50, generator)
    network = models.build("cnn", (3, SIZE, SIZE), len(SHAPES))  # or any `nn.Module`
    normalize = tp.Normalize(mean=(0.35,) * 3, std=(0.25,) * 3)  # from bytes to floats around zero, by channel
    experiment = tp.Experiment(network, train, test, preprocess=normalize, name="shapes")
    strategy = tp.ParallelSGD(rounds=20)  # 15 steps a round: the optimizer's moments start anew with each task
    recipe = tp.Recipe(optimizer="adamw", learning_rate=0.002, batch_size=20)
    # No `if __name__ == "__main__"` is needed: workers are fresh interpreters that do not import this file.
    pool = tp.LocalPool(workers=2, threads=1)
    result = tp.train(experiment, strategy=strategy, recipe=recipe, pool=pool, epochs=10)
    print(f"test accuracy {result.summary['test_accuracy']:.3f}")
