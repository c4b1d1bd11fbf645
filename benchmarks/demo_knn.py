"""How far the demo's encoder is above the untrained one, over several training seeds.

    python benchmarks/demo_knn.py DEMO_FOLDER [--seeds 0 1 2] [--json]

Takes the two datasets of a finished `terrafm demo`, trains the demo's recipe once per seed and
scores each on the held-out tiles. Prints one line per seed and modality.
"""

import argparse
import json
import platform
import statistics

from terrafm.demo import LOGICAL_CPUS, demo_config
from terrafm.eval.probes.knn import evaluate_knn
from terrafm.export import export_checkpoint
from terrafm.ray.runtime import ensure_ray
from terrafm.storage import join
from terrafm.train.driver.pretrain import pretrain


def score(folder: str, seed: int) -> dict[str, dict[str, float]]:
    """Accuracy of kNN (k = 20) per modality: trained, untrained, mean spectrum."""
    config = demo_config(seed)
    output = join(folder, "seeds", str(seed))
    run = pretrain(config, join(folder, "data", "train"), join(output, "run"))
    written, _ = export_checkpoint(run.checkpoint, join(output, "weights"), "safetensors")
    held_out = join(folder, "data", "held-out")
    result = evaluate_knn(written[0], held_out, size=config.data.global_size)
    return {
        name: {
            "trained": row["knn20"],
            "untrained": row["untrained"]["knn20"],
            "mean_spectrum": row["mean_spectrum"]["knn20"],
        }
        for name, row in result["by_modality"].items()
    }


def main() -> None:
    """Trains, scores, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    ensure_ray(LOGICAL_CPUS)
    scores = {seed: score(arguments.folder, seed) for seed in arguments.seeds}
    machine = f"{platform.machine()}, {platform.processor() or 'CPU'}"
    for name in next(iter(scores.values())):
        margins = [row[name]["trained"] - row[name]["untrained"] for row in scores.values()]
        if arguments.json:
            line = {
                "name": f"demo kNN above untrained, {name}",
                "value": round(statistics.mean(margins), 4),
                "bar": 0.0,
                "better": "higher",
                "unit": "accuracy",
                "seeds": {seed: row[name] for seed, row in scores.items()},
                "machine": machine,
            }
            print(json.dumps(line))
        else:
            cells = "  ".join(f"{row[name]['trained']:.3f}" for row in scores.values())
            first = next(iter(scores.values()))[name]
            print(
                f"{name:<8} trained {cells}   untrained {first['untrained']:.3f}   "
                f"mean spectrum {first['mean_spectrum']:.3f}   "
                f"margin {statistics.mean(margins):+.3f} "
                f"({min(margins):+.3f} to {max(margins):+.3f})"
            )


if __name__ == "__main__":
    main()
