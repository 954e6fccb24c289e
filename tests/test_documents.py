"""The README's snippets and the notebook, executed."""

import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from PIL import Image

from main_vae import parse_arguments

README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def place(mnist, tmp_path_factory):
    """A folder in which a pasted snippet finds what it names: a checkpoint of epoch 30, the data, own images."""
    import amortized_vae
    from data import stratified_subset
    from files import save_json

    place = tmp_path_factory.mktemp("pasted")
    (place / "checkpoints").mkdir()
    (place / "my_images").mkdir()
    (place / "data").symlink_to(ROOT / "data")
    train, test = (stratified_subset(split, size=100) for split in mnist)
    config = {"latent_dim": 10, "sigma_p": 0.4, "seed": 0}
    amortized_vae.train(train=train, test=test, config=config, checkpoint_dir=place, epochs=1, **config)
    shutil.move(place / "vae_epoch_1.pt", place / "checkpoints/vae_epoch_30.pt")
    for results in (place / "results", place / "results/d20"):
        results.mkdir()
        bounds, estimates = {"elbo": {"mean": -100.0}}, {"three_estimates": {"annealed": {"mean": -80.0}}}
        summary = {"amortized": {"test": bounds}, "log_prob": {"amortized": {"test": estimates}}}
        save_json(results / "summary.json", summary)
    for number, image in enumerate(test.images[:30]):
        grey = Image.fromarray(((image[0] + 1) * 127.5).round().byte().numpy())
        grey.save(place / "my_images" / f"{number}.png")
        grey.save(place / "digit.png")
    return place


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_a_pasted_snippet_works(snippet, place):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{snippet}"],
        cwd=place,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    if "print(" in snippet:
        assert re.search(r"-\d+\.\d", done.stdout)


def test_there_are_snippets():
    assert len(SNIPPETS) == 4


def test_the_readme_lists_every_flag_with_its_default():
    table = README[README.index("## Flags of main_vae.py") :]
    for name, value in vars(parse_arguments([])).items():
        flag = f"`--{name.replace('_', '-')}`"
        assert flag in table
        row = next(line for line in table.splitlines() if flag in line)
        assert value is False or str(value) in row


def test_every_module_is_in_the_readmes_layout():
    for path in ROOT.glob("*.py"):
        assert f"`{path.name}`" in README


def test_the_notebook_runs_from_top_to_bottom():
    notebook = nbformat.read(ROOT / "explore.ipynb", as_version=4)
    assert all(cell.outputs for cell in notebook.cells[2:] if cell.cell_type == "code"), "it is stored with its outputs"
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(ROOT)}}).execute()
