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

README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMERICS = [f"evaluation/{name}.py" for name in ("measurements", "scores", "latents", "samples", "statistics")]
DOCUMENTS = [README, *(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md")))]
SNIPPETS = [snippet for text in DOCUMENTS for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


@pytest.fixture(scope="module")
def folder(mnist, tmp_path_factory):
    """A folder in which a pasted snippet finds what it names: pretrained models, the data, an own image, summaries."""
    folder = tmp_path_factory.mktemp("pasted")
    for name in ("data", "pretrained"):
        (folder / name).symlink_to(ROOT / name)
    dark_on_light = (1 - mnist[1].images[0, 0]) * 127.5
    Image.fromarray(dark_on_light.round().byte().numpy()).save(folder / "digit.png")
    for results in (folder / "results", folder / "results/d20"):
        results.mkdir()
        shutil.copy(ROOT / "pretrained/scores.csv", results)
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
    assert len(SNIPPETS) == 2


def test_every_module_is_in_the_readmes_list():
    for path in (*ROOT.glob("*.py"), *ROOT.glob("evaluation/[a-z]*.py"), *ROOT.glob("runtime/[a-z]*.py")):
        assert f"`{path.name}`" in README


@pytest.mark.parametrize("room", ["model.py", "vae_utils.py", "evaluation/ais.py", "evaluation/gaps.py", *NUMERICS])
def test_numeric_code_imports_neither_the_runtime_nor_figures(room):
    imports = re.findall(r"^(?:from|import) (\w+)", (ROOT / room).read_text(encoding="utf-8"), re.MULTILINE)
    assert not {"runtime", "matplotlib", "argparse"} & set(imports)


def test_the_notebook_runs_from_top_to_bottom():
    notebook = nbformat.read(ROOT / "explore.ipynb", as_version=4)
    assert all(cell.outputs for cell in notebook.cells[2:] if cell.cell_type == "code"), "it is stored with its outputs"
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(ROOT)}}).execute()
