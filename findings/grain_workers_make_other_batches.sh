#!/usr/bin/env bash
# grain 0.2.18: the number of worker processes decides which rows share a batch, how large batches are, and with drop_remainder how
# many rows are lost. Of ten rows in fours, no workers and two leave two rows out, and three leave six out.
#
# A DataLoader deals rows to its workers and each worker makes batches of its own: every worker has a remainder. IterDataset's
# mp_prefetch does the same. So one seed gives other steps, and steps of other sizes, on a machine with other cores. Batching a
# MapDataset, before to_iter_dataset(), gives the same batches under any number of workers.
#
# Output seen (Python 3.11, numpy 2.4.6):
#   0 workers: [0, 1, 2, 3] [4, 5, 6, 7] [8, 9]; without remainders [0, 1, 2, 3] [4, 5, 6, 7]
#   2 workers: [0, 2, 4, 6] [1, 3, 5, 7] [8] [9]; without remainders [0, 2, 4, 6] [1, 3, 5, 7]
#   3 workers: [0, 3, 6, 9] [1, 4, 7] [2, 5, 8]; without remainders [0, 3, 6, 9]
#   3 workers after MapDataset.batch: [0, 1, 2, 3] [4, 5, 6, 7] [8, 9]
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grain==0.2.18 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import sys

import grain
from absl import flags
from grain import python as loader


def batches(workers, drop):
    sampler = loader.IndexSampler(10, shard_options=loader.NoSharding(), shuffle=False, num_epochs=1)
    operations = [loader.Batch(4, drop_remainder=drop)]
    rows = loader.DataLoader(data_source=range(10), sampler=sampler, operations=operations, worker_count=workers)
    return [batch.tolist() for batch in rows]


if __name__ == "__main__":
    flags.FLAGS(sys.argv[:1])
    kept = {}
    for workers in (0, 2, 3):
        every, kept[workers] = batches(workers, drop=False), batches(workers, drop=True)
        print(f"{workers} workers:", *every, end="; without remainders ")
        print(*kept[workers])
    mapped = grain.MapDataset.range(10).batch(4).to_iter_dataset().mp_prefetch(grain.MultiprocessingOptions(num_workers=3))
    mapped = [batch.tolist() for batch in mapped]
    print("3 workers after MapDataset.batch:", *mapped)
    assert [len(kept[workers]) for workers in (0, 2, 3)] == [2, 2, 1], "it batches otherwise now"
    assert kept[2] != kept[0] and mapped == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]], "it batches otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
