#!/usr/bin/env bash
# Tells Ray that this machine will be taken away: drain_node.sh SECONDS MESSAGE [wait]
#
# Runs then save and go on elsewhere (docs/elastic.md). With `wait` it stays until Ray has left the
# machine or the seconds are over: a pod's preStop hook must not end before.
set -euo pipefail
seconds=$1
message=$2

# The node's id and the head's address stand nowhere but on the raylet's own command line.
node='' head='' raylet=''
for file in "${TERRAFM_PROC:-/proc}"/[0-9]*/cmdline; do
  mapfile -d '' -t words 2>/dev/null <"$file" || continue
  [[ ${words[0]:-} == */raylet ]] || continue
  raylet=${file%/cmdline}
  for word in "${words[@]}"; do
    case $word in
    --node_id=*) node=${word#*=} ;;
    --gcs-address=*) head=${word#*=} ;;
    esac
  done
done
if [[ -z $node || -z $head ]]; then
  echo "drain_node: no Ray node runs on this machine" >&2
  exit 1
fi

ray drain-node --address "$head" --node-id "$node" \
  --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "$message" \
  --deadline-remaining-seconds "$seconds"
echo "drain_node: node $node will be gone in $seconds s: $message"

if [[ ${3:-} == wait ]]; then
  end=$((SECONDS + seconds))
  while [[ -d $raylet ]] && ((SECONDS < end)); do
    sleep 1
  done
fi
