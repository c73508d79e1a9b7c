"""Opens what `sae convert` writes by the libraries whose layouts they are, and compares codes and reconstructions (scripts/interop.sh)."""
import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch

TOLERANCE = 1e-5  # of the largest number


def saelens(folder, x):
    from sae_lens import SAE

    sae = SAE.load_from_disk(str(folder), device="cpu")
    with torch.no_grad():
        if sae.cfg.architecture() == "temporal":  # whole sequences
            x = x.reshape(-1, sae.cfg.metadata.context_size, x.shape[1])
        codes, rows = sae.encode(x), sae(x)
        return codes.flatten(0, -2), rows.flatten(0, -2)


def dictionary_learning(folder, x):
    from dictionary_learning.utils import load_dictionary

    sae, _ = load_dictionary(str(folder), device="cpu")
    with torch.no_grad():
        codes = sae.encode(x)
        return codes, sae.decode(codes)


def sparsify(folder, x):
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # there is no GPU
    from sparsify import SparseCoder

    sae = SparseCoder.load_from_disk(folder, device="cpu")
    with torch.no_grad():
        found = sae.encode(x)
        codes = torch.zeros(x.shape[0], sae.num_latents).scatter_(1, found.top_indices, found.top_acts)
        rows = sae.decode(found.top_acts, found.top_indices)
        return codes, rows if sae.W_skip is None else rows + x @ sae.W_skip.T


def gemma_scope(folder, x):
    p = {name: torch.from_numpy(array) for name, array in np.load(folder / "params.npz").items()}
    z = x @ p["W_enc"] + p["b_enc"]
    codes = torch.relu(z) * (z > p["threshold"])
    return codes, codes @ p["W_dec"] + p["b_dec"]


PEERS = {"saelens": saelens, "dictionary_learning": dictionary_learning, "sparsify": sparsify, "gemma_scope": gemma_scope}
# Fixtures in layouts of others, so that each is converted; every architecture that a peer has is there.
CASES = {
    "saelens": [
        "dl_autoencoder", "dl_autoencoder_new", "dl_gated", "dl_jumprelu", "dl_topk", "dl_batch_topk", "dl_matryoshka",
        "openai_topk", "openai_relu", "sparsify_topk", "gemma_scope_1_stored", "gemma_scope_1_deflated", "gemma_scope_2",
        "gemma_scope_2_transcoder_affine", "llama_scope", "llama_scope_transcoder", "llamascopium_jumprelu_inference",
        "llamascopium_jumprelu_dataset_wise", "saelens_abstopk_rescale", "saelens_matching_pursuit", "saelens_transcoder",
        "saelens_skip_transcoder", "saelens_jumprelu_transcoder", "saelens_standard_layer_norm", "saelens_topk_layer_norm",
        "saelens_standard_constant_norm_rescale", "saelens_standard_no_bdec_input", "saelens_pre6_standard",
        "saelens_checkpoint_batchtopk", "saelens_checkpoint_matryoshka", "saelens_standard_bf16", "saelens_temporal",
    ],
    "dictionary_learning": [
        "saelens_standard", "saelens_standard_no_bdec_input", "saelens_gated", "saelens_jumprelu",
        "saelens_jumprelu_no_bdec_input", "saelens_topk", "saelens_topk_rescale", "sparsify_topk", "gemma_scope_1_stored",
        "saelens_checkpoint_batchtopk",
    ],
    "sparsify": ["saelens_topk", "dl_topk", "sparsify_groupmax", "sparsify_transcode_skip"],
    "gemma_scope": ["saelens_jumprelu", "saelens_standard", "dl_jumprelu", "gemma_scope_2"],
}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--program", required=True)
    arguments.add_argument("--fixtures", type=pathlib.Path, required=True)
    options = arguments.parse_args()
    failed = 0

    def sae(*words):
        subprocess.run([options.program, *map(str, words), "--quiet"], check=True)

    with tempfile.TemporaryDirectory() as temp:
        temp = pathlib.Path(temp)
        for layout, names in CASES.items():
            for name in names:
                fixture, folder = options.fixtures / name, temp / layout / name
                folder.parent.mkdir(exist_ok=True)
                data = fixture / "x.npy"
                sae("convert", "--sae", fixture, "--to", layout, "--out", folder)
                sae("encode", "--sae", fixture, "--data", data, "--out", temp / "codes.npy", "--force")
                sae("reconstruct", "--sae", fixture, "--data", data, "--out", temp / "rows.npy", "--force")
                ours = np.load(temp / "codes.npy"), np.load(temp / "rows.npy")
                theirs = [t.numpy() for t in PEERS[layout](folder, torch.from_numpy(np.load(data)))]
                difference = [float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(ours, theirs)]
                good = all(d <= TOLERANCE for d in difference) and np.array_equal(ours[0] != 0, theirs[0] != 0)
                failed += not good
                print(f"{'ok  ' if good else 'FAIL'} {layout:20} {name:36} codes {difference[0]:.1e}, rows {difference[1]:.1e}")
    print(f"{sum(map(len, CASES.values())) - failed} of {sum(map(len, CASES.values()))} as they should be")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
