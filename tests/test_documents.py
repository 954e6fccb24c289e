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

from amortized_vae import AmortizedVAE
from data import Data, stratified_subset
from runtime.checkpoint import save_json
from runtime.config import TrainConfig
from training import train

README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def folder(mnist, tmp_path_factory):
    """A folder in which a pasted snippet finds what it names: a checkpoint of epoch 30, the data, own images."""
    folder = tmp_path_factory.mktemp("pasted")
    (folder / "checkpoints").mkdir()
    (folder / "my_images").mkdir()
    (folder / "data").symlink_to(ROOT / "data")
    parts = [stratified_subset(split, size=100) for split in mnist]
    config = TrainConfig(epochs=1, train_size=100, latent_dim=10, precision="float32")
    train(AmortizedVAE(config, Data(parts[0], parts[1], parts[1], parts[1])), checkpoint_dir=folder)
    shutil.move(folder / "vae_epoch_1.pt", folder / "checkpoints/vae_epoch_30.pt")
    for results in (folder / "results", folder / "results/d20"):
        results.mkdir()
        bounds, estimates = {"elbo": {"mean": -100.0}}, {"regression": {"mean": -80.0}}
        save_json(
            results / "summary.json",
            {"methods": {"amortized": {"bounds": {"test": bounds}, "log_prob": {"test": estimates}}}},
        )
    for number, image in enumerate(parts[1].images[:30]):
        grey = Image.fromarray(((image[0] + 1) * 127.5).round().byte().numpy())
        grey.save(folder / "my_images" / f"{number}.png")
        grey.save(folder / "digit.png")
    return folder


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_a_pasted_snippet_works(snippet, folder):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{snippet}"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    if "print(" in snippet:
        assert re.search(r"-\d+\.\d", done.stdout)


def test_there_are_snippets():
    assert len(SNIPPETS) == 4


def test_every_module_is_in_the_readmes_list():
    for path in (*ROOT.glob("*.py"), *ROOT.glob("evaluation/[a-z]*.py"), *ROOT.glob("runtime/[a-z]*.py")):
        assert f"`{path.name}`" in README


@pytest.mark.parametrize("room", ["model.py", "vae_utils.py", "evaluation/ais.py", "evaluation/gaps.py"])
def test_numeric_code_imports_neither_the_runtime_nor_figures(room):
    imports = re.findall(r"^(?:from|import) (\w+)", (ROOT / room).read_text(encoding="utf-8"), re.MULTILINE)
    assert not {"runtime", "matplotlib", "argparse"} & set(imports)


def test_the_notebook_runs_from_top_to_bottom():
    notebook = nbformat.read(ROOT / "explore.ipynb", as_version=4)
    assert all(cell.outputs for cell in notebook.cells[2:] if cell.cell_type == "code"), "it is stored with its outputs"
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(ROOT)}}).execute()
