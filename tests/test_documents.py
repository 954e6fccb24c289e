"""The README's snippets and the notebook, executed; fits and log p(x) are rough, so that they take less time."""

import re
import shutil

import nbformat
from conftest import ROOT, image_folder
from nbclient import NotebookClient
from PIL import Image

from evaluation.log_prob import log_prob

ROUGH = {"chains": 2, "log_weight_std": 5.0}


def test_pasted_snippets_work(mnist, tmp_path, monkeypatch, capsys, rough):
    """In a folder with what they name: pretrained models, data, an own image, summaries."""
    for name in ("data", "pretrained"):
        (tmp_path / name).symlink_to(ROOT / name)
    dark_on_light = (1 - mnist[1].images[0, 0]) * 127.5
    Image.fromarray(dark_on_light.round().byte().numpy()).save(tmp_path / "digit.png")
    for results in (tmp_path / "results", tmp_path / "results/d20"):
        results.mkdir()
        shutil.copy(ROOT / "pretrained/scores.csv", results)
    image_folder(tmp_path / "my_images", {"cat": 20, "dog": 20, "owl": 20})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(log_prob, "__kwdefaults__", log_prob.__kwdefaults__ | ROUGH)
    documents = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))]
    snippets = [snippet for text in documents for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    assert len(snippets) == 4
    for snippet in snippets:
        exec(snippet, {})
        if "print(" in snippet:
            assert re.search(r"-\d+\.\d|folder:my_images: 3 classes", capsys.readouterr().out)


def test_the_notebook_runs_from_top_to_bottom():
    notebook = nbformat.read(ROOT / "explore.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in code[1:]), "it is stored with its outputs"
    rough = ", ".join(f"{name}={value}" for name, value in ROUGH.items())
    quicker = {
        "log_weight_std=1.0": rough,
        "num_samples=1000": "num_samples=20",
        "train_size=2_000": "train_size=100",
        "epochs=4": "epochs=2",
    }
    code[0].source += "\nimport sys; sys.path.insert(0, 'tests'); from rough import make_rough\nmake_rough()\n"
    for cell in code:
        for written, run in quicker.items():
            cell.source = cell.source.replace(written, run)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(ROOT)}}).execute()
