#!/usr/bin/env bash
# Waits for AWS to announce that this spot instance will be taken away, then drains its Ray node.
#
# The announcement comes two minutes before the end, on the instance's own metadata address.
set -euo pipefail
metadata=${TERRAFM_METADATA:-http://169.254.169.254}
pause=${TERRAFM_NOTICE_PAUSE:-5}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Only sessions are answered (HttpTokens: required). A token per look costs a millisecond, and none
# has to be renewed. Prints nothing while there is no announcement (404).
look() {
  local token
  token=$(curl -sf -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' \
    "$metadata/latest/api/token") || return 0
  # From a file, since `ps` shows command lines.
  curl -sf -m 2 -H @<(printf 'X-aws-ec2-metadata-token: %s\n' "$token") \
    "$metadata/latest/meta-data/spot/instance-action" || true
}

until notice=$(look) && [[ $notice == *'"time"'* ]]; do
  sleep "$pause"
done
when=$(sed -E 's/.*"time" *: *"([^"]+)".*/\1/' <<<"$notice" | tr -d '\n')
left=$(($(date -d "$when" +%s) - $(date +%s)))
((left > 0)) || left=0

# Ray may not be up yet, or its head busy: there is nothing better to do with the time.
end=$((SECONDS + left))
until bash "$here/drain_node.sh" "$left" "spot notice for $when"; do
  ((SECONDS < end)) || exit 1
  sleep 1
  left=$((end > SECONDS ? end - SECONDS : 0))
done
# One notice is all there will be; ending would have systemd start this again.
exec sleep infinity
