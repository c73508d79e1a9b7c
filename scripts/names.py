"""Asks the program for every name in SAELens' table of releases, pretrained_saes.yaml, and compares the download that it names with what
SAELens' own loaders fetch (scripts/interop.sh). Nothing is downloaded."""
import argparse
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

# What the loaders of SAELens 6.54 (loading/pretrained_sae_loaders.py) hand to hf_hub_download, weights and settings that they need.
FOLDERS = {
    "sae_lens": ["sae_weights.safetensors", "cfg.json"],
    "gemma_2": ["params.npz"],
    "gemma_2_transcoder": ["params.npz"],
    "gemma_3": ["params.safetensors"],  # and config.json where it is there
    "llama_scope": ["checkpoints/final.safetensors", "hyperparams.json"],
    "llama_scope_r1_distill": ["sae_weights.safetensors", "config.json"],
    "dictionary_learning_1": ["ae.pt", "config.json"],
    "temporal": ["latest_ckpt.safetensors", "conf.yaml"],
}
FILES = {"connor_rob_hook_z", "deepseek_r1", "goodfire", "mwhanna_transcoder", "qwen_scope"}


def files_of(loader, path):
    if loader in FILES:
        return [path]
    if loader == "mntss_clt_layer_transcoder":
        return [f"W_enc_{path}.safetensors", f"W_dec_{path}.safetensors", "config.yaml"]
    return [f"{path}/{name}" for name in FOLDERS[loader]]


def expected(release, sae):
    loader, path, repository = release.get("conversion_func") or "sae_lens", str(sae["path"]), release["repo_id"]
    files = files_of(loader, path)
    command = {"gemma_3": f'--include "{path}/*"', "mwhanna_transcoder": f'--include "{path}" "*.yaml"'}.get(loader, " ".join(files))
    return f"is {' and '.join(files)} of {repository} on the", f"; huggingface-cli download {repository} {command} puts it there"


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--program", required=True)
    arguments.add_argument("--table", type=pathlib.Path, required=True)
    options = arguments.parse_args()
    table = yaml.load(options.table.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))

    with tempfile.TemporaryDirectory() as temp:
        bare = {"HF_HUB_CACHE": temp, "HOME": temp, "PATH": os.environ["PATH"]}

        def finds(name, release, sae, environment):
            error = subprocess.run([options.program, "inspect", name], env=environment, capture_output=True, text=True).stderr
            return all(part in error for part in expected(release, sae)), error

        # Every name by the program's own rules, those that it has none for by the table.
        asked = [(f"{name}/{sae['id']}", release, sae) for name, release in table.items() for sae in release["saes"]]
        with_table = {**bare, "SAE_PRETRAINED_SAES": str(options.table.resolve())}
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            by_rule = [found for found, _ in pool.map(lambda one: finds(*one, bare), asked)]
            others = [one for one, found in zip(asked, by_rule) if not found]
            by_table = list(pool.map(lambda one: finds(*one, with_table), others))

            # The first of each release under a name that no rule has, so that the table alone knows it.
            later = pathlib.Path(temp) / "later.yaml"
            later.write_text(re.sub(r"^(?=[^\s#])", "later-", options.table.read_text(), flags=re.MULTILINE))
            firsts = [(f"later-{name}/{release['saes'][0]['id']}", release, release["saes"][0]) for name, release in table.items()]
            by_copy = list(pool.map(lambda one: finds(*one, {**bare, "SAE_PRETRAINED_SAES": str(later)}), firsts))

    failed = [(one[0], error) for one, (found, error) in zip(others + firsts, by_table + by_copy) if not found]
    for name, error in failed[:20]:
        print(f"FAIL {name}: {error.strip()}")
    releases = {one[0].split("/")[0] for one in others}
    print(f"{len(table)} releases, {len(asked)} SAEs: {len(asked) - len(others)} by rules, all of {len(table) - len(releases)} releases; "
          f"{sum(found for found, _ in by_table)} by the table; {sum(found for found, _ in by_copy)} of {len(firsts)} renamed ones by it")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
