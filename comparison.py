"""The pictures of a run, drawn from its checkpoints: reconstructions, prior samples, both regimes side by side."""

from pathlib import Path

import torch

import figures
import latent_optimization
from data import DIGITS, rows_per_digit
from files import save_figure
from progress import Stage
from trained import load_models
from vae_utils import SIGMA_P, random_generator

PRIOR_SAMPLES = 64


def draw_epochs(*, epochs, train, test, checkpoint_dir, results_dir, sigma_p=SIGMA_P, seed=0, **fitting):
    """Draws every saved epoch's figures from the checkpoints of both regimes.

    fitting: precision and fit_steps of `latent_optimization.unseen_fits`.
    """
    with Stage("figures", total=len(epochs), unit="epoch") as stage:
        for epoch in epochs:
            draw_epoch(
                epoch=epoch,
                train=train,
                test=test,
                checkpoint_dir=checkpoint_dir,
                results_dir=results_dir,
                sigma_p=sigma_p,
                seed=seed,
                **fitting,
            )
            stage.advance()


def draw_epoch(*, epoch, train, test, checkpoint_dir, results_dir, sigma_p=SIGMA_P, seed=0, **fitting):
    """Draws recon, latent_opt_recon, samples and comparison of one epoch from the two checkpoints.

    fitting: as in `draw_epochs`.
    """
    device = train.images.device
    vae, latents = load_models(checkpoint_dir, epoch=epoch, device=device)
    train_rows = rows_per_digit(train.labels, 1).flatten()
    test_rows = rows_per_digit(test.labels, 2)  # (10, 2): the first for the reconstructions, the second to compare
    seen, unseen = train.images[train_rows], test.images[test_rows.T.flatten()]
    q, _ = latent_optimization.unseen_posterior(
        images=unseen, decoder=latents.decoder, seed=seed, sigma_p=sigma_p, **fitting
    )
    noise_generator = random_generator(seed, "prior samples", device=device)
    z = torch.randn(PRIOR_SAMPLES, vae.decoder.latent_dim, generator=noise_generator, device=device)
    with torch.no_grad():
        seen_by = vae.decode(vae.encode(seen).mean), latents.decode(latents.posterior(seen, train_rows).mean)
        unseen_by = vae.decode(vae.encode(unseen).mean), latents.decode(q.mean)
        samples = vae.decode(z), latents.decode(z)

    results_dir = Path(results_dir)
    for regime, prefix, on_seen, on_unseen in zip(
        figures.NAMES, ("recon", "latent_opt_recon"), seen_by, unseen_by, strict=True
    ):
        figure = figures.image_rows(
            rows=[
                ("training image", seen),
                ("reconstruction", on_seen),
                ("test image", unseen[:DIGITS]),
                ("reconstruction", on_unseen[:DIGITS]),
            ],
            title=f"{figures.NAMES[regime]}, epoch {epoch}: reconstructions at the mean of q(z)",
        )
        save_figure(results_dir / f"{prefix}_epoch_{epoch}.png", figure)
    figure = figures.sample_sheets(
        sheets=dict(zip(figures.NAMES.values(), samples, strict=True)),
        title=f"Prior samples, epoch {epoch}: the mean of p(x|z) at the same 64 draws of z",
    )
    save_figure(results_dir / f"samples_epoch_{epoch}.png", figure)
    original = unseen[DIGITS:]
    fitted = [(name, images[DIGITS:]) for name, images in zip(figures.NAMES.values(), unseen_by, strict=True)]
    errors = {
        name: [f"{error:.1f}" for error in (original - images).square().flatten(1).sum(1).tolist()]
        for name, images in fitted
    }
    figure = figures.image_rows(
        rows=[("test image", original), *fitted],
        captions=errors,
        title=f"Unseen test images, epoch {epoch}; below each reconstruction its squared error "
        r"$\|x-\hat x\|^2$ (pixels in [-1, 1])",
    )
    save_figure(results_dir / f"comparison_epoch_{epoch}.png", figure)
