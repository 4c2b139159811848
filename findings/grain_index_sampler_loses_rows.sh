#!/usr/bin/env bash
# grain 0.2.18: with several processes a DataLoader over an IndexSampler leaves rows out, though drop_remainder is False. A shard that
# has one row more than the shortest gives that row up: in one epoch its last one; in two it reads it once and drops another.
#
# IndexSampler cuts n rows into contiguous shards of uneven size, and lets positions run to num_epochs × n, which the
# DataLoader walks in strides of the number of shards. So the first shard takes as many rows as the others. No warning says so; the one
# about dropped rows comes with drop_remainder=True alone. An evaluation over all hosts misses rows, and counts fewer.
#
# Output seen (Python 3.11, numpy 2.4.6), rows of each shard:
#   10 rows, 3 shards: [0, 1, 2] [4, 5, 6] [7, 8, 9]; never read: [3]
#   11 rows, 4 shards: [0, 1] [3, 4] [6, 7] [9, 10]; never read: [2, 5, 8]
#   10 rows, 3 shards, two epochs: the first shard reads [0, 1, 2, 3, 0, 1]
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grain==0.2.18 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
from grain import python as grain


def shards(rows, number, epochs=1):
    read = []
    for index in range(number):
        options = grain.ShardOptions(index, number, drop_remainder=False)
        sampler = grain.IndexSampler(rows, shard_options=options, shuffle=False, num_epochs=epochs)
        read.append([int(row) for row in grain.DataLoader(data_source=range(rows), sampler=sampler, worker_count=0)])
    return read


lost = {}
for rows, number in ((10, 3), (11, 4)):
    read = shards(rows, number)
    lost[rows] = sorted(set(range(rows)) - {row for shard in read for row in shard})
    print(f"{rows} rows, {number} shards:", *read, end="")
    print(f"; never read: {lost[rows]}")
first = shards(10, 3, epochs=2)[0]
print(f"10 rows, 3 shards, two epochs: the first shard reads {first}")
assert lost == {10: [3], 11: [2, 5, 8]} and first == [0, 1, 2, 3, 0, 1], "it reads otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
