"""RODS with CAS in 30 lines of torch: Algorithm 2 of the RODS paper, in its letters.

`rods.rods_sampler` is held equal to this by the tests. python examples/rods_in_30_lines.py
"""

import sys
from pathlib import Path

import torch


def rods_cas(D, latents, *, eps, rho, window=(0.1, 0.5), N=40, t_min=0.002, t_max=80.0, exponent=7):  # type: ignore[no-untyped-def]
    """Images [B, C, H, W] and, for each step of the window, the curvature index H [B]; `D` is D(x, t)."""

    def norm(x):  # type: ignore[no-untyped-def]
        return x.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)  # [B, 1, 1, 1]

    def unit(x):  # type: ignore[no-untyped-def]
        return torch.where(norm(x) >= 1e-12, x / norm(x), 0.0)

    def direction(x, t):  # type: ignore[no-untyped-def]
        """d(x) = (x - D(x; t)) / t, and g(x), the gradient of the score's norm n(x) = ||d(x) / t||."""
        x = x.detach().requires_grad_(True)
        d = (x - D(x, t)) / t
        (g,) = torch.autograd.grad(norm(d / t).sum(), x)
        return d.detach(), g

    ramp = torch.arange(N, dtype=torch.float64) / max(N - 1, 1)
    ts = (t_max ** (1 / exponent) + ramp * (t_min ** (1 / exponent) - t_max ** (1 / exponent))) ** exponent
    ts = torch.cat([ts, torch.zeros(1).double()])  # EDM's noise levels, then 0
    x, Hs = ts[0] * latents.double(), []
    for i in range(N):
        t = ts[i]
        if window[0] * N - 1e-9 <= i < window[1] * N - 1e-9:
            d, g = direction(x, t)
            delta = rho * unit(g)  # the worst direction nearby
            d_worst, g_worst = direction(x + delta, t)
            H = norm(g_worst - g)  # the curvature index, equation (8)
            d = torch.where(eps <= H, d_worst, d)  # CAS: where the surface bends, the direction at x + delta
            Hs.append(H.flatten())
        else:
            d = ((x - D(x, t)) / t).detach()
        x = x + (ts[i + 1] - t) * d  # an Euler step
    return x, torch.stack(Hs)


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(root))  # so that it runs without installing the project
    from training.checkpoint import load_denoiser

    net = load_denoiser(root / "models" / "hands-32.safetensors").requires_grad_(False)
    latents = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, H = rods_cas(net, latents, eps=float("inf"), rho=4.0, window=(0.3, 0.7), N=10)
    eps = float(H.amax(dim=0).median())
    fixed, _ = rods_cas(net, latents, eps=eps, rho=4.0, window=(0.3, 0.7), N=10)
    for i, change in enumerate((fixed - plain).flatten(1).abs().amax(dim=1)):
        print(f"image {i}: largest H {float(H[:, i].max()):.3g}, eps {eps:.3g}, changed by up to {float(change):.3g}")


if __name__ == "__main__":
    main()
